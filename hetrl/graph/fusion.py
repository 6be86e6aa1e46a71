"""Which operators a runtime executes as one kernel.

A group is an *anchor* with the *pointwise* operators behind it that nobody else reads: normalization in inference
form, activations, constant biases and scales, and one residual Add. Anchors are served from the last to the first, so
that of two convolutions that meet in an Add the later one takes it. What is pointwise and left over makes groups of
its own. Shape-only views go with their only reader, else with what makes them.

What holds for every result, and makes contracting groups safe: each member reaches the group's exit inside the group,
and only the exit is read outside. A cycle between groups would be a cycle between their exits, so there is none, and
the order of the exits is a topological order of the groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from hetrl.graph.model import FusionGroup, OpKind
from hetrl.graph.operator import Operand, Operator
from hetrl.graph.roles import GroupView, is_pointwise

_ABSORBING = frozenset(
    {
        OpKind.CONV,
        OpKind.CONV_TRANSPOSE,
        OpKind.GEMM,
        OpKind.MATMUL,
        OpKind.POOL,
        OpKind.GLOBAL_POOL,
        OpKind.NORM,
        OpKind.SOFTMAX,
        OpKind.REDUCE,
        OpKind.RESIZE,
    }
)
Grouping = Callable[[Sequence[Operator], Iterable[str]], tuple[FusionGroup, ...]]
"""Operators in topological order and the graph's outputs to groups in topological order, as `fuse` makes them."""

_LARGEST_DIAMOND = 8
"""Operators between a tensor and where its readers meet again: x * sigmoid(x) has 2, a written-out Gelu 5."""


def fuse(operators: Sequence[Operator], outputs: Iterable[str]) -> tuple[FusionGroup, ...]:
    """Partition operators, given in topological order, into groups in topological order.

    :param outputs: the graph's outputs, which no group may hide.
    """
    return _Fuser(operators, frozenset(outputs)).run()


class _Fuser:
    def __init__(self, operators: Sequence[Operator], outputs: frozenset[str]) -> None:
        self.operators = operators
        made_by = {result.name: index for index, op in enumerate(operators) for result in op.results}
        self.sources = [[made_by.get(o.name, -1) for o in op.activations] for op in operators]
        self.leaves = [any(result.name in outputs for result in op.results) for op in operators]
        self.readers: list[list[int]] = [[] for _ in operators]
        for index, sources in enumerate(self.sources):
            for source in dict.fromkeys(sources):
                if source >= 0:
                    self.readers[source].append(index)
        self.owner: list[int | None] = [None] * len(operators)
        self.members: list[list[int]] = []

    def run(self) -> tuple[FusionGroup, ...]:
        everything = range(len(self.operators))
        for index in reversed(everything):
            if not is_pointwise(self.operators[index]) and self.operators[index].kind is not OpKind.VIEW:
                self._start(index, residuals=1)
        for index in everything:
            if self.owner[index] is None and self.operators[index].kind is not OpKind.VIEW:
                self._start(index, residuals=None)
        for index in reversed(everything):
            if self.owner[index] is None:
                self._join_reader(index)
        for index in everything:
            if self.owner[index] is None and not self._join_source(index):
                self._open(index)
        groups = sorted((sorted(members) for members in self.members), key=lambda members: members[-1])
        return tuple(GroupView(self.operators, members).group(index) for index, members in enumerate(groups))

    def _open(self, index: int) -> list[int]:
        self.owner[index] = len(self.members)
        self.members.append([index])
        return self.members[-1]

    def _start(self, index: int, residuals: int | None) -> None:
        """Open a group and let it grow; `residuals` limits the other activations it may read (None: any number)."""
        members = self._open(index)
        if residuals is not None and self.operators[index].kind not in _ABSORBING:
            return
        while step := self._next_step(members, residuals):
            for member in step:
                self.owner[member] = self.owner[index]
            members.extend(step)

    def _next_step(self, members: list[int], residuals: int | None) -> list[int]:
        """The smallest set of pointwise operators behind the exit in which all its readers meet; empty if none."""
        exit_ = members[-1]
        if self.leaves[exit_] or len(self.operators[exit_].results) > 1:
            return []
        shape = self.operators[exit_].out.shape
        step = set(self.readers[exit_])
        while step and len(step) <= _LARGEST_DIAMOND:
            last = max(step)
            if not all(self._absorbable(index, shape) for index in step):
                return []
            if any(self.leaves[index] for index in step if index != last):
                return []
            beyond = {reader for index in step if index != last for reader in self.readers[index]}
            if beyond <= step:
                return sorted(step) if self._operands_allowed(members, step, residuals) else []
            step |= beyond
        return []

    def _absorbable(self, index: int, shape: tuple[int, ...]) -> bool:
        operator = self.operators[index]
        return self.owner[index] is None and is_pointwise(operator) and operator.out.shape == shape

    def _operands_allowed(self, members: list[int], step: set[int], residuals: int | None) -> bool:
        if residuals is None:
            return True
        inside = step.union(members)
        for index in step:
            for operand in self._foreign(index, inside):
                if self.operators[index].op_type != "Add" or operand.shape != self.operators[index].out.shape:
                    return False
        behind = inside - {members[0]}
        return len({operand.name for index in behind for operand in self._foreign(index, inside)}) <= residuals

    def _foreign(self, index: int, inside: set[int]) -> list[Operand]:
        pairs = zip(self.operators[index].activations, self.sources[index], strict=True)
        return [operand for operand, source in pairs if source not in inside]

    def _join_reader(self, index: int) -> None:
        readers = self.readers[index]
        owner = self.owner[readers[0]] if len(readers) == 1 else None
        if owner is not None and not self.leaves[index]:
            self.owner[index] = owner
            self.members[owner].append(index)

    def _join_source(self, index: int) -> bool:
        source = self.sources[index][0] if self.sources[index] else -1
        owner = self.owner[source] if source >= 0 else None
        if owner is None or self.leaves[source] or self.readers[source] != [index]:
            return False
        if max(self.members[owner]) != source:
            return False
        self.owner[index] = owner
        self.members[owner].append(index)
        return True
