"""Which rule follows channels through which operator.

A rule reads the layouts of an operator's operands and says, by links and locks, what must hold for channels to go, so
that the operator of what is left is what is left of the operator; it returns the layouts of the results, or None where
it cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable

from hetrl.graph.channels import moves, norms, products, views
from hetrl.graph.channels.atoms import Layout
from hetrl.graph.channels.tracer import Tracer
from hetrl.graph.model import OpKind
from hetrl.graph.operator import Operator

Rule = Callable[[Tracer, Operator], list[Layout] | None]

_RULES: dict[str, Rule] = {
    "Conv": products.convolved,
    "ConvInteger": products.convolved,
    "QLinearConv": products.convolved,
    "ConvTranspose": products.convolved,
    "Gemm": products.gemm,
    "MatMul": products.multiplied,
    "MatMulInteger": products.multiplied,
    "QLinearMatMul": products.multiplied,
    "Einsum": products.summed,
    "BatchNormalization": norms.per_channel,
    "InstanceNormalization": norms.per_channel,
    "LayerNormalization": norms.over_last,
    "RMSNormalization": norms.over_last,
    "SimplifiedLayerNormalization": norms.over_last,
    "GroupNormalization": norms.over_groups,
    "LRN": norms.over_neighbours,
    "Softmax": moves.normalized_along,
    "LogSoftmax": moves.normalized_along,
    "Hardmax": moves.normalized_along,
    "Transpose": moves.transposed,
    "Concat": moves.concatenated,
    "Split": moves.split,
    "Slice": moves.sliced,
    "Pad": moves.padded,
    "Gather": moves.gathered,
    "Expand": moves.expanded,
    "Tile": moves.tiled,
    "Resize": moves.resized,
    "Upsample": moves.resized,
    "DepthToSpace": moves.depth_to_space,
    "SpaceToDepth": moves.space_to_depth,
    "QuantizeLinear": moves.quantized,
    "DequantizeLinear": moves.quantized,
}
_NOT_POINTWISE = frozenset({"RotaryEmbedding", "DynamicQuantizeLinear"})
_VIEWS = frozenset("Reshape Flatten Squeeze Unsqueeze Identity Dropout Cast CastLike".split())


def rule_of(op: Operator) -> Rule | None:
    """The rule of an operator, None for those that keep all they read whole."""
    if op.domain != "" or op.kind is OpKind.UNKNOWN:
        return None
    if op.op_type in _RULES:
        return _RULES[op.op_type]
    match op.kind:
        case OpKind.ELEMENTWISE if op.op_type not in _NOT_POINTWISE and len(op.results) == 1:
            return moves.pointwise
        case OpKind.VIEW if op.op_type in _VIEWS and len(op.results) == 1:
            return views.viewed
        case OpKind.POOL | OpKind.GLOBAL_POOL:
            return moves.pooled
        case OpKind.REDUCE if op.op_type.startswith(("Reduce", "Arg")):
            return moves.reduced
    return None
