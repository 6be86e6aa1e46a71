"""Which part of every tensor each part of a split segment makes, reads and writes.

A range is [start, stop) along the split's axis: channels, or rows. Needs go backwards from what leaves the segment, so
that halos grow (`hetrl.splits`); a part computes the hull of what its own operators read and what it writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hetrl.errors import PlanError
from hetrl.graph import Geometry, Node, OperatorGraph, OpKind
from hetrl.plan import Axis
from hetrl.splits import channel_bounds, every_part_works, input_rows, row_bounds

Range = tuple[int, int]
_MIXING = frozenset({OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.GEMM, OpKind.MATMUL})
_WINDOWED = frozenset({OpKind.CONV, OpKind.POOL})


@dataclass(frozen=True)
class Share:
    """One part's work.

    :param axis: of the tensors' dimensions; it means nothing where all ranges are whole.
    :param ranges: what it computes of its operators' results, and reads of operands from outside.
    :param writes: what it contributes to tensors that leave the segment.
    """

    axis: int
    ranges: Mapping[str, Range]
    writes: Mapping[str, Range]


class Cutter:
    """The geometry of a split along one axis of one segment.

    :param by_channel: along output channels, otherwise along height.
    """

    def __init__(self, graph: OperatorGraph, axis: int, *, by_channel: bool) -> None:
        self.graph = graph
        self.axis = axis
        self.by_channel = by_channel

    def size(self, tensor: str) -> int:
        """Of a tensor along the axis."""
        shape = self.graph.tensor_by_name[tensor].shape
        return shape[self.axis] if self.axis < len(shape) else 1

    def whole(self, tensor: str, range_: Range) -> bool:
        return range_ == (0, self.size(tensor))

    def computed(self, node: Node, need: Range) -> Range:
        """The least range that holds `need` and that the operator can be made to compute."""
        first, last = need
        g = node.geometry
        if self.by_channel and g.depthwise:
            times = g.out_channels // g.in_channels
            return first // times * times, -(-last // times) * times
        if not self.by_channel and node.geometry.kind in _WINDOWED:
            while last < g.out_h and raw_rows(g, (first, last))[1] <= 0:  # it would see padding alone
                last += 1
            while first > 0 and raw_rows(g, (first, last))[0] >= g.in_h:
                first -= 1
        return first, last

    def read(self, node: Node, tensor: str, made: Range) -> Range:
        """What of an operand the range `made` of the result needs."""
        g, size = node.geometry, self.size(tensor)
        whole = (0, size)
        if self.whole(node.outputs[0], made):
            return whole
        if self.by_channel:
            if g.depthwise:
                times = g.out_channels // g.in_channels
                return made[0] // times, made[1] // times
            mixes = g.kind in _MIXING
        else:
            mixes = False
            if g.kind in _WINDOWED and tensor == node.inputs[0]:
                first, last = made
                rows = {"height": g.in_h, "kernel": g.kernel_h, "stride": g.stride_h, "dilation": g.dilation_h}
                return input_rows(first, last, pad_top=g.pad_top, **rows)
        return whole if mixes or size != self.size(node.outputs[0]) else made


def raw_rows(g: Geometry, made: Range) -> Range:
    """Input rows that output rows read, padding included: it may begin before 0 and end after the input."""
    low = made[0] * g.stride_h - g.pad_top
    return low, (made[1] - 1) * g.stride_h - g.pad_top + (g.kernel_h - 1) * g.dilation_h + 1


def whole_share(graph: OperatorGraph, nodes: Sequence[int], leaving: Collection[str]) -> Share:
    """All of the work, by one processor."""
    shapes = {name: tensor.shape for name, tensor in graph.tensor_by_name.items()}
    names = [name for n in nodes for name in (*graph.nodes[n].inputs, *graph.nodes[n].outputs)]
    ranges = {name: (0, (*shapes[name], 1)[0]) for name in names}
    return Share(0, ranges, {name: ranges[name] for name in leaving})


def split_shares(
    graph: OperatorGraph,
    groups: Sequence[int],
    axis: Axis,
    leaving: Collection[str],
    shares_pct: Sequence[int],
    where: str,
) -> tuple[Cutter, tuple[Share, ...]]:
    """The parts of a segment of `groups` (ascending) that is split along output channels or height.

    :param leaving: tensors of the segment that are read outside of it, or are the model's outputs.
    :param where: the plan's field, for errors.
    :raises PlanError: a part would have nothing to do.
    """
    exit_ = graph.groups[groups[-1]].outputs[0]
    if axis is Axis.HEIGHT:
        cutter = Cutter(graph, 2, by_channel=False)
        bounds = row_bounds(cutter.size(exit_), shares_pct)
    else:
        dense = graph.group_geometry(groups[-1]).kind in (OpKind.GEMM, OpKind.MATMUL)
        cutter = Cutter(graph, len(graph.tensor_by_name[exit_].shape) - 1 if dense else 1, by_channel=True)
        bounds = channel_bounds(cutter.size(exit_), shares_pct)
    if not every_part_works(bounds):
        raise PlanError(where, f"{exit_!r} is too small for the shares {list(shares_pct)}: a part has nothing to do")
    ranges: list[dict[str, Range]] = [{} for _ in shares_pct]
    writes: list[dict[str, Range]] = [{} for _ in shares_pct]
    nodes = [graph.nodes[n] for group in groups for n in graph.groups[group].nodes]
    for node in reversed(sorted(nodes, key=lambda node: graph.node_index[node.id])):
        result = node.outputs[0]
        if result in leaving:
            own = bounds if axis is Axis.OUTPUT_CHANNELS else row_bounds(cutter.size(result), shares_pct)
            for part, range_ in enumerate(_written(own, [r.get(result) for r in ranges])):
                if range_[0] < range_[1]:
                    writes[part][result] = range_
                    _widen(ranges[part], result, range_)
        for needed in ranges:
            if result in needed:
                needed[result] = cutter.computed(node, needed[result])
                for tensor in node.inputs:
                    _widen(needed, tensor, cutter.read(node, tensor, needed[result]))
    return cutter, tuple(Share(cutter.axis, r, w) for r, w in zip(ranges, writes, strict=True))


def _written(bounds: Sequence[int], needed: Sequence[Range | None]) -> list[Range]:
    """Who writes what: cut where it is computed anyway, as near to the shares' own cuts as that allows."""
    cuts = [0]
    for before, after, cut in zip(needed, needed[1:], bounds[1:-1], strict=False):
        low, high = after[0] if after else cut, before[1] if before else cut
        cuts.append(max(min(cut, high), low, cuts[-1]))
    return list(itertools.pairwise((*cuts, bounds[-1])))


def _widen(ranges: dict[str, Range], tensor: str, range_: Range) -> None:
    low, high = ranges.get(tensor, range_)
    ranges[tensor] = min(low, range_[0]), max(high, range_[1])
