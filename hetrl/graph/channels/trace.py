"""From operators to groups of channels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import multimode

import numpy as np

from hetrl.graph.channels.atoms import Labels, Layout, Solved
from hetrl.graph.channels.groups import Axes, ChannelAxis, ChannelGroup, Channels, Traced
from hetrl.graph.channels.rules import rule_of
from hetrl.graph.channels.tracer import Read, Role, Tracer
from hetrl.graph.model import OpKind
from hetrl.graph.operator import Operator

_ONE = "all of its channels go together"


def trace(operators: Sequence[Operator], outputs: Sequence[str]) -> Channels:
    """Find the groups of a graph's channels.

    Where several ways keep tensors rectangular (heads, or places within a head), the first that leaves something to
    prune is taken.

    :param operators: in topological order.
    :param outputs: the graph's outputs, which stay as they are.
    """
    chosen: dict[str, int] = {}
    while True:
        tracer = _walked(operators, outputs, chosen)
        solved = tracer.atoms.solved()
        stuck = {
            key: choice.options
            for key, choice in tracer.choices.items()
            if chosen.get(key, 0) < choice.options
            and (choice.labels is None or len(solved.free(choice.labels)) < min(len(choice.labels), 2))
        }
        if not stuck:
            return _Grouping(operators, tracer.reads, solved).channels()
        for key in stuck:
            chosen[key] = chosen.get(key, 0) + 1  # as many as there are options: the first again, for good


def _walked(operators: Sequence[Operator], outputs: Sequence[str], chosen: dict[str, int]) -> Tracer:
    tracer = Tracer(chosen)
    for operator in operators:
        rule = rule_of(operator)
        tracer.begin()
        tracer.visit(operator, rule(tracer, operator) if rule else None)
    tracer.outputs(outputs)
    return tracer


class _Grouping:
    """Sorts channels by the axes that they lie in: those of a group lie in the same ones, equally often."""

    def __init__(self, operators: Sequence[Operator], reads: Sequence[Read], solved: Solved) -> None:
        self._operators = operators
        self._reads = reads
        self._solved = solved
        self._axes: dict[int, ChannelAxis | None] = {}
        self._parted: dict[int, list[tuple[int, int]]] = {}

    def channels(self) -> Channels:
        root, free = self._solved.root, self._solved.why < 0
        group_of = self._classes()
        self._number, count = group_of, int(group_of.max(initial=-1)) + 1
        sizes = np.bincount(group_of[np.unique(root[group_of >= 0])], minlength=count)
        self._sizes = sizes.tolist()
        first = np.unique(group_of[group_of >= 0], return_index=True)[1]
        first = np.flatnonzero(group_of >= 0)[first].tolist()
        self._open = np.array([*(free[first] & (sizes > 1)), False])  # the last one is that of no group, -1
        groups = self._described(first)
        traced = tuple(self._traced(op, read) for op, read in zip(self._operators, self._reads, strict=True))
        members = np.where(np.arange(len(root)) == root, group_of, -1)
        members[~self._open[members]] = -1
        return Channels(groups, members, traced)

    def _classes(self) -> Labels:
        """For each atom its group, -1 for what no weights make or what is in no activation."""
        root, why = self._solved.root, self._solved.why
        mark = (why >= 0).astype(np.uint64)
        seen, made = np.zeros(len(root), bool), np.full(len(root), len(self._operators))
        for number, (labels, activation) in enumerate(self._distinct()):
            atoms = root[labels[labels >= 0]]
            np.add.at(mark, atoms, np.uint64(_mixed(number)))
            seen[atoms] |= activation
        for index in reversed(range(len(self._reads))):
            for labels in _made(self._reads[index]):
                made[root[labels[labels >= 0]]] = index
        roots = np.flatnonzero((root == np.arange(len(root))) & seen & (made < len(self._operators)))
        order = roots[np.lexsort((roots, made[roots]))]
        numbers: dict[int, int] = {}
        group_of = np.full(len(root), -1)
        group_of[order] = [numbers.setdefault(key, len(numbers)) for key in mark[order].tolist()]
        return group_of[root]

    def _distinct(self) -> Iterator[tuple[Labels, bool]]:
        """All axes, each once, and whether an activation has it."""
        found: dict[int, tuple[Labels, bool]] = {}
        for operator, read in zip(self._operators, self._reads, strict=True):
            for layout in read.results:
                found |= {id(labels): (labels, True) for labels in layout if labels is not None}
            for position, layout in read.operands.items():
                operand = operator.operands[position]
                for labels in layout:
                    if labels is not None:
                        found.setdefault(id(labels), (labels, operand is not None and not operand.constant))
        return iter(found.values())

    def _described(self, first: list[int]) -> tuple[ChannelGroup, ...]:
        makers: list[list[str]] = [[] for _ in first]
        resolutions: list[list[int]] = [[] for _ in first]
        widths = [0] * len(first)
        for operator, read in zip(self._operators, self._reads, strict=True):
            pixels = operator.out.elements // max(operator.out.shape[0] if operator.out.shape else 1, 1)
            for group in sorted({group for labels in _made(read) for group in self._groups(labels)}):
                makers[group].append(operator.id)
                resolutions[group].append(pixels // max(_made_size(read), 1))
            for labels in _multiplied(operator, read):
                for group, repeat in self._parts(labels):
                    widths[group] = math.gcd(widths[group], repeat)
        names: dict[str, int] = {}
        result = []
        for group, atom in enumerate(first):
            name = makers[group][0]
            names[name] = names.get(name, 0) + 1
            why = int(self._solved.why[atom])
            result.append(
                ChannelGroup(
                    name=name if names[name] == 1 else f"{name}#{names[name]}",
                    size=self._sizes[group],
                    width=max(widths[group], 1),
                    makers=tuple(makers[group]),
                    resolution=max(multimode(resolutions[group])),
                    reason=self._solved.reasons[why] if why >= 0 else None if self._sizes[group] > 1 else _ONE,
                )
            )
        return tuple(result)

    def _groups(self, labels: Labels) -> list[int]:
        return [group for group, _ in self._parts(labels)]

    def _parts(self, labels: Labels) -> list[tuple[int, int]]:
        """Groups of an axis, and how many of its places each of their channels takes."""
        if id(labels) not in self._parted:
            groups = self._number[labels[labels >= 0]]
            counts = np.bincount(groups[groups >= 0], minlength=len(self._sizes))
            found = np.flatnonzero(counts).tolist()
            self._parted[id(labels)] = [(group, int(counts[group]) // self._sizes[group]) for group in found]
        return self._parted[id(labels)]

    def _traced(self, operator: Operator, read: Read) -> Traced:
        counts = {name: self._axis(labels) for name, labels in read.counts.items()}
        return Traced(
            operator,
            {position: self._layout(layout) for position, layout in read.operands.items()},
            tuple(self._layout(layout) for layout in read.results),
            read.roles,
            {name: axis for name, axis in counts.items() if axis is not None},
        )

    def _layout(self, layout: Layout) -> Axes:
        return tuple(None if labels is None else self._axis(labels) for labels in layout)

    def _axis(self, labels: Labels) -> ChannelAxis | None:
        if id(labels) not in self._axes:
            parts = tuple((group, repeat) for group, repeat in self._parts(labels) if self._open[group])
            stays = (labels < 0) | ~self._open[self._number[labels]]
            atoms = np.where(stays, -1, self._solved.root[labels])
            self._axes[id(labels)] = ChannelAxis(atoms, int(stays.sum()), parts) if parts else None
        return self._axes[id(labels)]


def _made(read: Read) -> list[Labels]:
    """Axes of the operator's weights that make channels."""
    made = [read.operands[position][axis] for (position, axis), role in read.roles.items() if role is Role.MAKES]
    return [labels for labels in made if labels is not None]


def _multiplied(operator: Operator, read: Read) -> Iterator[Labels]:
    """Axes of the activations of a product: what they are multiples of makes it fast or slow."""
    if operator.kind not in (OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.GEMM, OpKind.MATMUL):
        return
    factors = [
        layout for position, layout in read.operands.items() if operator.operands[position] in operator.activations
    ]
    for layout in (*factors, *read.results):
        yield from (labels for labels in layout if labels is not None)


def _made_size(read: Read) -> int:
    return max((len(labels) for labels in _made(read)), default=1)


def _mixed(number: int) -> int:
    """64 bits that look random (splitmix64): sums of them tell sets of axes apart."""
    bits = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return bits ^ bits >> 31
