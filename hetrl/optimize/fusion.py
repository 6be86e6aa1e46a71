"""Operator fusion by DNNFusion's mapping types (Niu et al., PLDI'21, tables 2 and 3), as groupings of a graph.

Every operator maps input elements to output elements in one of five ways, and the types of two neighbours say whether
they become one kernel: always, only if a profile says that it pays, or never. The paper's plan starts at the one-to-one
operator with the smallest result and grows to readers, then to sources. Its code is not public: the classes and the
two "never" entries (one-to-many or many-to-many before many-to-many) are the paper's, entries of reorganize and shuffle
beside heavier types are read as "profile". What hetrl adds is its own rule for groups: one exit.

`fuse` in `hetrl.graph.fusion` is what the measured runtimes do; `unfused` and `Dnnfusion` are for comparison. A graph
under another grouping is no network that was measured: what the cost model says of it is predicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hetrl.graph.kinds import is_identity
from hetrl.graph.model import FusionGroup, OperatorGraph, OpKind
from hetrl.graph.operator import Operator
from hetrl.graph.roles import GroupView


class Mapping(StrEnum):
    """How an operator's input elements meet its output elements."""

    ONE_TO_ONE = "one-to-one"
    ONE_TO_MANY = "one-to-many"
    MANY_TO_MANY = "many-to-many"
    REORGANIZE = "reorganize"
    SHUFFLE = "shuffle"


class Decision(StrEnum):
    """What becomes of two neighbours."""

    FUSE = "fuse"
    PROFILE = "profile"
    BREAK = "break"


_HEAVY = frozenset({
    OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.GEMM, OpKind.MATMUL, OpKind.POOL, OpKind.GLOBAL_POOL, OpKind.NORM,
    OpKind.SOFTMAX, OpKind.REDUCE,
})  # fmt: skip
_SHUFFLES = frozenset({"Transpose", "DepthToSpace", "SpaceToDepth"})
_ONE_TO_ONE_COPIES = frozenset({"Concat", "Slice", "Split", "Pad"})
# From the lightest to the heaviest: two fused operators are of the heavier one's type.
_WEIGHT = (Mapping.ONE_TO_ONE, Mapping.SHUFFLE, Mapping.REORGANIZE, Mapping.ONE_TO_MANY, Mapping.MANY_TO_MANY)
_LIGHT = (Mapping.ONE_TO_ONE, Mapping.SHUFFLE, Mapping.REORGANIZE)


def mapping(operator: Operator) -> Mapping | None:
    """The operator's type; None for operators that hetrl has no formula for, which never fuse."""
    kind, op_type = operator.kind, operator.op_type
    if is_identity(kind, operator.operands, operator.results):
        return Mapping.ONE_TO_ONE
    if op_type == "BatchNormalization" or kind is OpKind.ELEMENTWISE:
        narrow = any(operand.elements < operator.out.elements for operand in operator.activations)
        return Mapping.ONE_TO_MANY if narrow else Mapping.ONE_TO_ONE
    if kind in _HEAVY or op_type == "GridSample":
        return Mapping.MANY_TO_MANY
    if kind is OpKind.VIEW:
        return Mapping.REORGANIZE
    if kind is OpKind.COPY and op_type in _SHUFFLES:
        return Mapping.SHUFFLE
    if kind is OpKind.COPY and op_type in _ONE_TO_ONE_COPIES:
        return Mapping.ONE_TO_ONE
    return Mapping.ONE_TO_MANY if kind in (OpKind.COPY, OpKind.RESIZE) else None


def decide(first: Mapping, second: Mapping) -> Decision:
    """What becomes of an operator of type `first` whose result one of type `second` reads."""
    if second is Mapping.MANY_TO_MANY and first in (Mapping.ONE_TO_MANY, Mapping.MANY_TO_MANY):
        return Decision.BREAK
    if Mapping.ONE_TO_ONE in (first, second) or (first in _LIGHT and second in _LIGHT):
        return Decision.FUSE
    return Decision.PROFILE


def combined(first: Mapping, second: Mapping) -> Mapping:
    """The type of two operators as one kernel."""
    return max(first, second, key=_WEIGHT.index)


def unfused(operators: Sequence[Operator], outputs: Iterable[str]) -> tuple[FusionGroup, ...]:
    """Every operator is a kernel of its own."""
    return tuple(GroupView(operators, [index]).group(index) for index in range(len(operators)))


def pair_decisions(operators: Sequence[Operator]) -> Counter[Decision]:
    """How many pairs of an operator and a reader of its result there are, by what the types say of them."""
    made_by = {result.name: operator for operator in operators for result in operator.results}
    found: Counter[Decision] = Counter()
    for reader in operators:
        for name in dict.fromkeys(operand.name for operand in reader.activations if operand.name in made_by):
            found[_decided(mapping(made_by[name]), mapping(reader))] += 1
    return found


def _decided(first: Mapping | None, second: Mapping | None) -> Decision:
    return decide(first, second) if first and second else Decision.BREAK


def kernels(graph: OperatorGraph) -> int:
    """Groups that do anything: views move no data."""
    return sum(any(graph.nodes[n].geometry.kind is not OpKind.VIEW for n in group.nodes) for group in graph.groups)


def _never(first: Operator, second: Operator) -> bool:
    return False


@dataclass(frozen=True)
class Dnnfusion:
    """The paper's fusion plan as a grouping.

    :param readers_first: the paper's order, in which activations may join the next convolution; False gives sources
        the precedence, so that activations stay with the convolution before them, as mobile runtimes have it.
    :param pays: the profile, asked for pairs that need one (the group's last or first operator and its neighbour).
    """

    readers_first: bool = True
    pays: Callable[[Operator, Operator], bool] = _never

    def __call__(self, operators: Sequence[Operator], outputs: Iterable[str]) -> tuple[FusionGroup, ...]:
        """Groups in topological order."""
        members = _Planner(operators, frozenset(outputs), self).run()
        return tuple(GroupView(operators, group).group(index) for index, group in enumerate(members))


class _Planner:
    def __init__(self, operators: Sequence[Operator], outputs: frozenset[str], rule: Dnnfusion) -> None:
        self._operators, self._rule = operators, rule
        made_by = {result.name: index for index, op in enumerate(operators) for result in op.results}
        self._sources = [[made_by[o.name] for o in op.activations if o.name in made_by] for op in operators]
        self._leaves = [any(result.name in outputs for result in op.results) for op in operators]
        self._readers: list[set[int]] = [set() for _ in operators]
        for index, sources in enumerate(self._sources):
            for source in sources:
                self._readers[source].add(index)
        self._types = [mapping(operator) for operator in operators]
        self._taken: set[int] = set()

    def run(self) -> list[list[int]]:
        seeds = [i for i, kind in enumerate(self._types) if kind is Mapping.ONE_TO_ONE]
        groups = []
        for seed in sorted(seeds, key=lambda i: (sum(r.bytes for r in self._operators[i].results), i)):
            if seed not in self._taken:
                groups.append(self._grow(seed))
                self._taken.update(groups[-1])
        groups += [[i] for i in range(len(self._operators)) if i not in self._taken]
        return sorted(groups, key=lambda group: group[-1])

    def _grow(self, seed: int) -> list[int]:
        group, kind = {seed}, Mapping.ONE_TO_ONE
        for forward in (True, False) if self._rule.readers_first else (False, True):
            while (step := self._step(group, kind, forward)) is not None:
                index, kind = step
                group.add(index)
        return sorted(group)

    def _step(self, group: set[int], kind: Mapping, forward: bool) -> tuple[int, Mapping] | None:
        """The next operator to join and the type of them all, None if there is none."""
        if forward:
            neighbours = self._readers[max(group)]
        else:
            neighbours = {source for member in group for source in self._sources[member]}
        for index in sorted(neighbours - group - self._taken, reverse=not forward):
            other = self._types[index]
            if other is None or not self._one_exit(group | {index}):
                continue
            first, second = (kind, other) if forward else (other, kind)
            ends = (max(group), index) if forward else (index, min(group))
            if self._fuses(decide(first, second), *ends):
                return index, combined(first, second)
        return None

    def _fuses(self, decision: Decision, first: int, second: int) -> bool:
        if decision is Decision.PROFILE:
            return self._rule.pays(self._operators[first], self._operators[second])
        return decision is Decision.FUSE

    def _one_exit(self, group: set[int]) -> bool:
        """Whether only the last operator is read outside: then groups as a whole have no cycles."""
        inner = group - {max(group)}
        return all(
            self._readers[index] and self._readers[index] <= group and not self._leaves[index] for index in inner
        )
