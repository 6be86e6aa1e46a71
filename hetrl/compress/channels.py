"""The shapes of a model after structured channel pruning, planned without weights.

Which channels go together is known from the graph (`hetrl.graph.channels`), so that what is planned here is what
`hetrl.compress.pruning` makes of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from hetrl.errors import UsageError
from hetrl.graph import Node, OperatorGraph, Tensor
from hetrl.graph.channels import Axes, ChannelGroup, Traced
from hetrl.graph.node import node_of
from hetrl.graph.operator import Attributes, Operand, Operator, dtype_bytes

Ratio = float | Sequence[float]
"""The share of channels that goes, 0 to below 1: of every group, or one for each of `OperatorGraph.channels.groups`."""

_DIGITS = 9  # 20 * (1 - 0.8) is 4 channels, not 3.999999999999999


def pruned(graph: OperatorGraph, ratio: Ratio, multiple: int = 4) -> OperatorGraph:
    """The graph with a share of the channels of every group that may lose some taken away.

    Of c channels, c * (1 - ratio) are kept, rounded up to a multiple of `multiple`, at most c. Tensor shapes, geometry
    and costs change; ids, groups, wiring, signatures and hashes stay those of the original, which plans refer to.

    :param multiple: channels; at least 1.
    :raises UsageError: a ratio or multiple out of range, or not as many ratios as there are groups.
    """
    if _nothing(ratio, multiple):  # nothing has to be traced
        return graph
    kept = kept_channels(graph, ratio, multiple)
    if all(stay == group.size for stay, group in zip(kept, graph.channels.groups, strict=True)):
        return graph
    operators = tuple(_smaller(traced, kept) for traced in graph.channels.traced)
    changed = {result.name: result for operator in operators for result in operator.results}
    return msgspec.structs.replace(
        graph,
        nodes=tuple(map(_resized, graph.nodes, graph.operators, operators)),
        tensors=tuple(_tensor(tensor, changed.get(tensor.name)) for tensor in graph.tensors),
        operators=operators,
    )


def kept_channels(graph: OperatorGraph, ratio: Ratio, multiple: int = 4) -> tuple[int, ...]:
    """How many channels of each group stay; raises what `pruned` raises."""
    groups = graph.channels.groups
    ratios = [ratio] * len(groups) if isinstance(ratio, int | float) else ratio
    _nothing(ratio, multiple)
    if len(ratios) != len(groups):
        raise UsageError(f"the model has {len(groups)} groups of channels, and {len(ratios)} ratios were given")
    return tuple(_kept(group, share, multiple) for group, share in zip(groups, ratios, strict=True))


def _nothing(ratio: Ratio, multiple: int) -> bool:
    """Whether nothing is asked for; raises where what is asked for makes no sense."""
    ratios = [ratio] if isinstance(ratio, int | float) else ratio
    for share in ratios:
        if not 0 <= share < 1:
            raise UsageError(f"a pruning ratio of {share} makes no sense", "0 <= ratio < 1")
    if multiple < 1:
        raise UsageError(f"channels cannot come in multiples of {multiple}", "1 or more")
    return isinstance(ratio, int | float) and ratio == 0


def _kept(group: ChannelGroup, ratio: float, multiple: int) -> int:
    if group.reason is not None:
        return group.size
    wanted = max(math.ceil(round(group.size * (1 - ratio), _DIGITS)), 1)
    step = multiple // math.gcd(multiple, group.width)
    return min(group.size, math.ceil(wanted / step) * step)


def _smaller(traced: Traced, kept: Sequence[int]) -> Operator:
    """The operator with the shapes that are left."""
    operator = traced.operator
    if not traced.touched:
        return operator
    operands = [
        _operand(operand, traced.operands.get(position), kept) for position, operand in enumerate(operator.operands)
    ]
    results = [_operand(result, axes, kept) for result, axes in zip(operator.results, traced.results, strict=True)]
    attributes: Attributes = operator.attributes
    for name, axis in traced.counts.items():
        attributes = attributes.with_integer(name, axis.size(kept))
    return msgspec.structs.replace(
        operator, operands=tuple(operands), results=tuple(r for r in results if r is not None), attributes=attributes
    )


def _operand(operand: Operand | None, axes: Axes | None, kept: Sequence[int]) -> Operand | None:
    if operand is None or axes is None or not any(axes):
        return operand
    sizes = zip(operand.shape, axes, strict=True)
    shape = tuple(size if axis is None else axis.size(kept) for size, axis in sizes)
    full, left = operand.elements, math.prod(shape)
    stored = operand.stored_bytes * left // full if full else 0
    if operand.stored_bytes == dtype_bytes(operand.dtype, full):
        stored = dtype_bytes(operand.dtype, left)
    return msgspec.structs.replace(operand, shape=shape, stored_bytes=stored)


def _resized(node: Node, before: Operator, operator: Operator) -> Node:
    return node if operator is before else node_of(operator, node.signature)


def _tensor(tensor: Tensor, result: Operand | None) -> Tensor:
    if result is None or result.shape == tensor.shape:
        return tensor
    return Tensor(tensor.name, result.shape, tensor.dtype, result.bytes)
