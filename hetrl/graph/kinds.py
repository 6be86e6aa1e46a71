"""Which class of operator an ONNX operator belongs to, and which of its operands are weights."""

from __future__ import annotations

from hetrl.graph.model import OpKind
from hetrl.graph.operator import Operand

_KINDS: tuple[tuple[OpKind, str], ...] = (
    (OpKind.CONV, "Conv QLinearConv ConvInteger"),
    (OpKind.CONV_TRANSPOSE, "ConvTranspose"),
    (OpKind.GEMM, "LSTM GRU RNN"),
    (OpKind.MATMUL, "Gemm MatMul QLinearMatMul MatMulInteger Einsum Attention"),
    (OpKind.POOL, "MaxPool AveragePool LpPool"),
    (OpKind.GLOBAL_POOL, "GlobalAveragePool GlobalMaxPool GlobalLpPool"),
    (
        OpKind.NORM,
        "BatchNormalization LayerNormalization InstanceNormalization GroupNormalization RMSNormalization LRN "
        "LpNormalization MeanVarianceNormalization SimplifiedLayerNormalization",
    ),
    (OpKind.SOFTMAX, "Softmax LogSoftmax Hardmax"),
    (
        OpKind.REDUCE,
        "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
        "ReduceSumSquare ArgMax ArgMin CumSum TopK",
    ),
    (
        OpKind.ELEMENTWISE,
        "Add Sub Mul Div Pow Mod Min Max Mean Sum Neg Abs Sign Floor Ceil Round Reciprocal Sqrt Exp Log Erf "
        "Sin Cos Tan Sinh Cosh Tanh Asin Acos Atan Asinh Acosh Atanh Relu LeakyRelu PRelu Elu Celu Selu Gelu Mish "
        "Swish Sigmoid HardSigmoid HardSwish Softplus Softsign ThresholdedRelu Shrink Clip Where Equal Greater "
        "GreaterOrEqual Less LessOrEqual And Or Xor Not BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitShift IsNaN "
        "IsInf Cast CastLike QuantizeLinear DequantizeLinear DynamicQuantizeLinear RotaryEmbedding",
    ),
    (OpKind.RESIZE, "Resize Upsample GridSample"),
    (
        OpKind.COPY,
        "Concat Slice Split Transpose Pad Gather GatherElements GatherND Scatter ScatterElements ScatterND "
        "TensorScatter Expand Tile DepthToSpace SpaceToDepth Trilu OneHot EyeLike ReverseSequence CenterCropPad "
        "Col2Im MaxUnpool RoiAlign MaxRoiPool Compress Shape Size Range ConstantOfShape",
    ),
    (OpKind.VIEW, "Reshape Flatten Squeeze Unsqueeze Identity Dropout"),
)
_KIND_OF = {op_type: kind for kind, names in _KINDS for op_type in names.split()}

_WEIGHT_POSITION = {"QLinearConv": 3, "QLinearMatMul": 3}

# Sizes and scales, not parameters, although they are constant floats.
_NO_PARAMETERS = frozenset({OpKind.RESIZE, OpKind.VIEW})


def weight_position(op_type: str) -> int:
    """Position of the second factor (kernel, matrix) of a convolution or product."""
    return _WEIGHT_POSITION.get(op_type, 1)


def kind_of(op_type: str, operands: tuple[Operand | None, ...], results: tuple[Operand, ...]) -> OpKind:
    """The class of a standard operator (domain `ai.onnx`), UNKNOWN where hetrl has no formula for it.

    A product is GEMM when one factor is constant, else MATMUL. A Cast to the type it has is a VIEW.
    """
    kind = _KIND_OF.get(op_type, OpKind.UNKNOWN)
    if op_type in ("Gemm", "MatMul", "QLinearMatMul", "MatMulInteger"):
        factors = [operands[0], operands[weight_position(op_type)]]
        return OpKind.GEMM if any(f is not None and f.constant for f in factors) else OpKind.MATMUL
    if op_type in ("Cast", "CastLike") and operands[0] is not None and operands[0].dtype == results[0].dtype:
        return OpKind.VIEW
    return kind


def keeps_shape(op_type: str) -> bool:
    """Whether the standard operator's result has its first input's shape, apart from broadcasting."""
    return _KIND_OF.get(op_type) in (OpKind.NORM, OpKind.SOFTMAX, OpKind.ELEMENTWISE)


def is_identity(kind: OpKind, operands: tuple[Operand | None, ...], results: tuple[Operand, ...]) -> bool:
    """Whether the operator is a view that changes nothing, not even the shape."""
    data = next((operand for operand in operands if operand is not None and not operand.constant), None)
    return kind is OpKind.VIEW and data is not None and data.shape == results[0].shape


def weight_elements(op_type: str, kind: OpKind, constants: tuple[Operand, ...]) -> int:
    """Parameters among an operator's constants, counted as PyTorch counts them.

    Left out: single numbers, 64-bit integers and booleans (axes, indices, masks), sizes of resizes, and the running
    mean and variance of a BatchNormalization.
    """
    if kind in _NO_PARAMETERS:
        return 0
    if op_type == "BatchNormalization":
        return sum(c.elements for c in constants[:2])
    return sum(c.elements for c in constants if c.elements > 1 and c.dtype not in ("int64", "bool"))
