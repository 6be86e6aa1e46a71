"""Along which of its own axes a constant operand follows an axis of its operator's result."""

from __future__ import annotations

import onnx

from hetrl.graph.declared import attributes

# Position of an operand -> its axis that is the output channels.
_OF_CHANNELS = {
    "Conv": {1: 0, 2: 0},
    "ConvTranspose": {1: 1, 2: 0},
    "ConvInteger": {1: 0, 3: 0},
    "QLinearConv": {3: 0, 4: 0, 5: 0, 8: 0},
    "MatMul": {1: 1},
    "MatMulInteger": {1: 1, 3: 0},
    "QLinearMatMul": {3: 1, 4: 0, 5: 0},
    "BatchNormalization": {1: 0, 2: 0, 3: 0, 4: 0},
}
_PER_AXIS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_NEVER = frozenset({"MaxPool", "AveragePool", "LpPool", "Clip"})


def constant_axis(
    node: onnx.NodeProto, position: int, shape: tuple[int, ...], axis: int, rank: int, *, by_channel: bool
) -> int | None:
    """The axis of the operand at `position` that is cut with the result, None if it is the same for all parts.

    :param shape: the constant's.
    :param axis: of the result of `rank` axes, the one that is cut; `by_channel` if it is that of the channels.
    """
    if node.op_type in _NEVER:
        return None
    if node.op_type in _OF_CHANNELS:
        found = _OF_CHANNELS[node.op_type].get(position) if by_channel else None
        return found if found is not None and found < len(shape) else None
    if node.op_type == "Gemm" and position == 1:
        return 0 if attributes(node).integer("transB", 0) else 1
    if node.op_type in _PER_AXIS and len(shape) == 1:
        return 0 if attributes(node).integer("axis", 1) % rank == axis else None
    aligned = axis - (rank - len(shape))  # broadcasting aligns the last axes
    return aligned if 0 <= aligned < len(shape) else None
