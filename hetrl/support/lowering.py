"""An operator graph as the operators that TensorFlow Lite runs, which are what its delegates see and count.

Normalization behind a convolution is folded into its weights, a Relu or Relu6 into the operator before it, dropouts
and identities vanish. Padding that is neither VALID nor TFLite's SAME (which puts the odd row at the end, PyTorch's
at both sides) becomes a PAD of its own. Checked against AI Hub's layer counts: `hetrl.support.hub`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hetrl.graph import Geometry, Node, OperatorGraph, OpKind

_NAMES = {
    "AveragePool": "AVERAGE_POOL_2D", "Concat": "CONCATENATION", "ConvTranspose": "TRANSPOSE_CONV",
    "DepthToSpace": "DEPTH_TO_SPACE", "DequantizeLinear": "DEQUANTIZE", "Flatten": "RESHAPE", "Gemm": "FULLY_CONNECTED",
    "GlobalAveragePool": "MEAN", "HardSwish": "HARD_SWISH", "LeakyRelu": "LEAKY_RELU", "Max": "MAXIMUM",
    "MaxPool": "MAX_POOL_2D", "Min": "MINIMUM", "PRelu": "PRELU", "QuantizeLinear": "QUANTIZE", "ReduceMean": "MEAN",
    "Resize": "RESIZE_NEAREST_NEIGHBOR", "Sigmoid": "LOGISTIC", "Slice": "STRIDED_SLICE",
    "SpaceToDepth": "SPACE_TO_DEPTH", "Squeeze": "RESHAPE", "Unsqueeze": "RESHAPE",
}  # fmt: skip
_FUSED = ("Relu", "Clip")  # into the operator before them
_HOSTS = ("Conv", "ConvTranspose", "Gemm", "Add", "Sub", "Mul", "Div", "MaxPool", "AveragePool", "BatchNormalization")
_FOLDS_NORM = ("Conv", "ConvTranspose", "Gemm")
_GONE = ("Identity", "Dropout")
_NOT_NEGATIVE = ("Relu", "Sigmoid")  # a maximum may then pad with zeros
_KEEPS_SIGN = ("Slice", "Split", "Concat", "QuantizeLinear", "DequantizeLinear", "MaxPool")
_MAX_RANK = 4  # of the delegates' tensors; an operator beyond it gets a name that no list has
_WINDOWS = (OpKind.CONV, OpKind.POOL)


@dataclass(frozen=True)
class RuntimeOp:
    """One operator of the runtime.

    :param name: the runtime's own name, `CONV_2D`.
    :param node: the ONNX node it comes from.
    :param reads: indices of the operators whose results it reads, ascending.
    """

    name: str
    node: str
    reads: tuple[int, ...]


def lower(graph: OperatorGraph) -> tuple[RuntimeOp, ...]:
    """The graph's operators in execution order."""
    readers = Counter(tensor for node in graph.nodes for tensor in node.inputs)
    readers.update(graph.outputs)
    producer = {tensor: node for node in graph.nodes for tensor in node.outputs}
    made: dict[str, int] = {}  # tensor -> index of the operator that makes it
    ops: list[RuntimeOp] = []

    def emit(name: str, node: Node, reads: tuple[int, ...]) -> int:
        ops.append(RuntimeOp(name, node.id, reads))
        return len(ops) - 1

    for node in graph.nodes:
        reads = tuple(sorted({made[tensor] for tensor in node.inputs if tensor in made}))
        before = producer.get(node.inputs[0]) if node.inputs else None
        alone = before is not None and readers[node.inputs[0]] == 1
        if node.op_type in _GONE:
            last = reads[0] if reads else None
        elif alone and before and _absorbed(node, before):
            last = made.get(node.inputs[0])
        elif node.op_type == "BatchNormalization":  # nothing to fold it into
            last = emit("ADD", node, (emit("MUL", node, reads),))
        else:
            if node.geometry.kind in _WINDOWS and _needs_pad(node.geometry):
                zero = node.geometry.kind is OpKind.CONV or _not_negative(node.inputs[0], producer)
                reads = (emit("PAD" if zero else "PADV2", node, reads),)
            flat = all(len(graph.tensor_by_name[tensor].shape) <= _MAX_RANK for tensor in (*node.inputs, *node.outputs))
            last = emit(_name(node) + ("" if flat else "_5D"), node, reads)
        if last is not None:
            made.update({tensor: last for tensor in node.outputs})
    return tuple(ops)


def _not_negative(tensor: str, producer: Mapping[str, Node]) -> bool:
    """Whether a Relu or the like made a tensor, perhaps with joins and slices in between."""
    node = producer.get(tensor)
    while node is not None and node.op_type in _KEEPS_SIGN:
        node = producer.get(node.inputs[0])
    return node is not None and node.op_type in _NOT_NEGATIVE


def _absorbed(node: Node, before: Node) -> bool:
    if node.op_type == "BatchNormalization":
        return before.op_type in _FOLDS_NORM
    return node.op_type in _FUSED and before.op_type in _HOSTS


def _name(node: Node) -> str:
    if node.op_type == "Conv":
        if node.geometry.depthwise:
            return "DEPTHWISE_CONV_2D"
        return "GROUPED_CONV_2D" if node.geometry.groups > 1 else "CONV_2D"
    if node.op_type == "MatMul":
        return "FULLY_CONNECTED" if node.geometry.kind is OpKind.GEMM else "BATCH_MATMUL"
    return _NAMES.get(node.op_type, node.op_type.upper())


def _needs_pad(g: Geometry) -> bool:
    sides = (
        (g.in_h, g.out_h, g.kernel_h, g.stride_h, g.dilation_h, g.pad_top),
        (g.in_w, g.out_w, g.kernel_w, g.stride_w, g.dilation_w, g.pad_left),
    )
    return not all(_valid(*side) for side in sides) and not all(_same(*side) for side in sides)


def _valid(size: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> bool:
    return before == 0 and out == (size - (kernel - 1) * dilation - 1) // stride + 1


def _same(size: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> bool:
    total = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return out == -(-size // stride) and before == total // 2
