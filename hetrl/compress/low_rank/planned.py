"""Low rank in a graph's shapes: which convolutions become two, planned without weights.

A plan's low rank is that of the study (`hetrl.optimize.low_rank`): windows larger than 1, the first convolution
excepted, as k x k to r channels and 1x1 to all of them. The two stay one operator of the graph, whose `front` is the
first of them, so that plans and placements know nothing of it; such an operator is not shared between processors.
"""

from __future__ import annotations

import math
from collections import Counter

import msgspec

from hetrl.compress.low_rank.factor import chain_macs
from hetrl.compress.low_rank.layers import Use
from hetrl.compress.low_rank.policy import LowRank
from hetrl.compress.low_rank.schemes import Narrow
from hetrl.graph import Node, OperatorGraph
from hetrl.graph.model import OpKind
from hetrl.graph.operator import Operator, dtype_bytes


def policy(keep: float) -> LowRank:
    """What `factor` makes of a plan's low rank."""
    return LowRank(keep=keep, matrices=False)


def factored(graph: OperatorGraph, keep: float) -> OperatorGraph:
    """The graph with every kernel that low rank makes smaller factored.

    :param keep: share (0 to 1, both excluded) of each factored kernel's weights that stays at most.
    """
    readers = Counter(operand.name for op in graph.operators for operand in op.constants)
    convolutions = [op.id for op in graph.operators if op.op_type == "Conv"]
    nodes = tuple(
        _factored(node, op, keep) if op.id in convolutions[1:] and _alone(op, readers) else node
        for node, op in zip(graph.nodes, graph.operators, strict=True)
    )
    changed = {index for index, (node, before) in enumerate(zip(nodes, graph.nodes, strict=True)) if node is not before}
    groups = tuple(
        msgspec.structs.replace(group, splits_height=False, splits_channels=False)
        if changed.intersection(group.nodes)
        else group
        for group in graph.groups
    )
    return msgspec.structs.replace(graph, nodes=nodes, groups=groups)


def factored_names(graph: OperatorGraph) -> frozenset[str]:
    """Ids of the operators of a `factored` graph that are two."""
    return frozenset(node.id for node in graph.nodes if node.front is not None)


def _alone(operator: Operator, readers: Counter[str]) -> bool:
    """Whether its weights are its own floating-point constants, and stored as such."""
    weight = operator.operand(1)
    if weight is None or not weight.constant or not weight.dtype.startswith("float"):
        return False
    return readers[weight.name] == 1 and weight.stored_bytes == dtype_bytes(weight.dtype, weight.elements)


def _factored(node: Node, operator: Operator, keep: float) -> Node:
    weight, source = operator.operand(1), operator.operand(0)
    geometry = node.geometry
    if weight is None or source is None or geometry.kind is not OpKind.CONV or geometry.groups > 1:
        return node
    if math.prod(weight.shape[2:]) == 1:
        return node
    links = Narrow(weight.shape)
    (rank,) = links.by_share(keep)
    factors = links.factors((rank,))
    use = Use(0, source.shape, operator.results[0].shape)
    less_weights = weight.elements - sum(factor.weights for factor in factors)
    less_macs = chain_macs(links, None, use) - chain_macs(links, factors, use)
    if less_weights <= 0 or less_macs <= 0:
        return node
    after = msgspec.structs.replace(
        geometry, in_channels=rank, in_h=geometry.out_h, in_w=geometry.out_w, kernel_h=1, kernel_w=1, stride_h=1,
        stride_w=1, dilation_h=1, dilation_w=1, pad_top=0, pad_bottom=0, pad_left=0, pad_right=0,
    )  # fmt: skip
    return msgspec.structs.replace(
        node,
        geometry=after,
        front=msgspec.structs.replace(geometry, out_channels=rank),
        macs=node.macs - less_macs,
        flops=node.flops - 2 * less_macs,
        weight_elements=node.weight_elements - less_weights,
        weight_bytes=node.weight_bytes - less_weights * weight.stored_bytes // weight.elements,
    )
