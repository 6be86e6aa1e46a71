"""Arithmetic of an operator.

Multiply-accumulates (out, in: elements of the output and the data input; C: channels; k: kernel positions):

    Conv, QLinearConv, ConvInteger     out * C_in / groups * k
    ConvTranspose                      in * C_out / groups * k
    Gemm, MatMul and quantized ones    rows * depth * columns, leading dimensions counted in the rows
    LSTM, GRU, RNN                     steps * batch * (inputs + hidden) * gates * directions
    Einsum                             product of the sizes of all indices (two factors)
    Attention                          2 * queries * keys * width, all heads
    everything else                    0

Floating-point operations are twice the MACs, plus the bias (one per output), plus, where there are no MACs:

    pools                              out * k;  global pools and reductions: in
    BatchNormalization                 2 * out (scale and shift)
    Layer-, Instance-, GroupNorm       7 * in (mean, centre, square, sum, normalize, scale, shift)
    RMSNorm, LpNorm                    4 * in (square, sum, normalize, scale)
    LRN                                (size + 4) * in
    Softmax                            5 * in (maximum, subtract, exponential, sum, divide)
    Resize, Upsample, GridSample       0 nearest, 8 * out linear, 32 * out cubic
    elementwise                        out * the small number below, 1 unless listed (a nominal count of the formula)
    copies, views, unknown             0
"""

from __future__ import annotations

from hetrl.graph.geometry import kernel_elements
from hetrl.graph.kinds import weight_position
from hetrl.graph.model import Geometry, OpKind
from hetrl.graph.operator import Operator

_ELEMENTWISE = {
    "Clip": 2,
    "LeakyRelu": 2,
    "PRelu": 2,
    "HardSigmoid": 4,
    "HardSwish": 5,
    "Sigmoid": 4,
    "Swish": 5,
    "Tanh": 6,
    "Erf": 8,
    "Gelu": 12,
    "Elu": 4,
    "Selu": 4,
    "Celu": 4,
    "Mish": 10,
    "Softplus": 4,
    "Exp": 4,
    "Log": 4,
    "Pow": 4,
    "Cast": 0,
    "CastLike": 0,
    "QuantizeLinear": 4,
    "DequantizeLinear": 2,
}
_NORMS = {"RMSNormalization": 4, "SimplifiedLayerNormalization": 4, "LpNormalization": 4}
_BIAS_POSITION = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "QLinearConv": 8}


def macs(operator: Operator, shape: Geometry) -> int:
    """Multiply-accumulates of one inference, by the table above."""
    out = operator.out
    match operator.kind:
        case OpKind.CONV:
            weight = operator.operand(weight_position(operator.op_type))
            return out.elements * (weight.elements // max(weight.shape[0], 1)) if weight is not None else 0
        case OpKind.CONV_TRANSPOSE:
            data, weight = operator.operands[0], operator.operand(1)
            return data.elements * (weight.elements // max(weight.shape[0], 1)) if data and weight else 0
        case OpKind.GEMM | OpKind.MATMUL:
            return shape.batch * shape.in_channels * shape.out_channels
        case _:
            return 0


def flops(operator: Operator, macs: int) -> int:
    """Floating-point (or integer) operations of one inference, by the table above."""
    data = operator.activations[0].elements if operator.activations else operator.out.elements
    return 2 * macs + _per_output(operator) * operator.out.elements + _per_input(operator) * data


def _per_output(operator: Operator) -> int:
    match operator.kind:
        case OpKind.CONV | OpKind.CONV_TRANSPOSE | OpKind.GEMM:
            position = _BIAS_POSITION.get(operator.op_type)
            return int(position is not None and operator.operand(position) is not None)
        case OpKind.POOL:
            return kernel_elements(operator)
        case OpKind.NORM if operator.op_type == "BatchNormalization":
            return 2
        case OpKind.RESIZE:
            mode = operator.attributes.text("mode", "linear" if operator.op_type == "GridSample" else "nearest")
            return {"nearest": 0, "cubic": 32, "bicubic": 32}.get(mode, 8)
        case OpKind.ELEMENTWISE:
            return _ELEMENTWISE.get(operator.op_type, 1)
        case _:
            return 0


def _per_input(operator: Operator) -> int:
    match operator.kind:
        case OpKind.GLOBAL_POOL | OpKind.REDUCE:
            return 1
        case OpKind.NORM if operator.op_type == "LRN":
            return operator.attributes.integer("size", 5) + 4
        case OpKind.NORM if operator.op_type != "BatchNormalization":
            return _NORMS.get(operator.op_type, 7)
        case OpKind.SOFTMAX:
            return 5
        case _:
            return 0
