"""The walk over a graph's operators that finds out which channels go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from hetrl.graph.channels.atoms import Atoms, Axis, Labels, Layout
from hetrl.graph.model import OpKind
from hetrl.graph.operator import Operand, Operator

_PRODUCTS = frozenset({OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.GEMM})


class Role(StrEnum):
    """What an axis of a constant means to the operator that reads it."""

    MAKES = "makes"  # one output channel per place: a kernel's first axis
    TAKES = "takes"  # summed over: a kernel's second axis
    SCALES = "scales"  # a normalization's factor per channel
    SHIFTS = "shifts"  # all else that has one number per channel


@dataclass
class Choice:
    """One of several ways to keep tensors rectangular; `labels` are the channels that it leaves."""

    options: int
    labels: Axis = None


@dataclass
class Read:
    """One operator as traced.

    :param operands: layout of each operand that has channels, by position.
    :param roles: of axes of constants, by position and axis.
    :param counts: attributes that hold how many channels an axis has, by name.
    """

    operands: dict[int, Layout] = field(default_factory=dict)
    roles: dict[tuple[int, int], Role] = field(default_factory=dict)
    counts: dict[str, Labels] = field(default_factory=dict)
    results: tuple[Layout, ...] = ()


class Tracer:
    """What rules read and write; see `hetrl.graph.channels.rules`.

    :param chosen: which option of each choice to take, by operator id.
    """

    def __init__(self, chosen: Mapping[str, int]) -> None:
        self.atoms = Atoms()
        self.choices: dict[str, Choice] = {}
        self.reads: list[Read] = []
        self._chosen = chosen
        self._latest = ""
        self._asked = 0  # choices of the current operator
        self._layouts: dict[str, Layout] = {}
        self._leaves: dict[str, Layout] = {}

    def visit(self, operator: Operator, results: Sequence[Layout] | None) -> None:
        """Note what an operator's results are like; None where no rule knows it, which keeps all it reads whole."""
        if results is None:
            for name in {operand.name for operand in operator.activations}:
                for axis in self._layouts.get(name, ()):
                    self.lock(axis, operator, "is not understood")
            results = [(None,) * len(result.shape) for result in operator.results]
            self.reads[-1] = Read()
        for result, layout in zip(operator.results, results, strict=True):
            self._layouts[result.name] = layout
        self.reads[-1].results = tuple(results)

    def begin(self) -> None:
        """The next operator."""
        self._asked = 0
        self.reads.append(Read())

    def of(self, operator: Operator, position: int) -> Layout:
        """The axes of an operand; those of a constant are free until something is said of them."""
        read = self.reads[-1].operands
        if position not in read:
            operand = operator.operands[position]
            assert operand is not None
            read[position] = self._leaf(operator, operand) if operand.constant else self._activation(operand)
        return read[position]

    def give(self, position: int, layout: Layout) -> None:
        """Say where the channels of an operand lie that has them in its numbers, like indices."""
        self.reads[-1].operands[position] = layout

    def link(self, one: Axis, other: Axis, operator: Operator, why: str = "joins it with what is kept whole") -> None:
        self.atoms.link(one, other, f"{described(operator)} {why}")

    def lock(self, axis: Axis, operator: Operator, why: str) -> None:
        if axis is not None:
            self.atoms.lock(axis, f"{described(operator)} {why}")

    def keep(self, layout: Layout, operator: Operator, why: str) -> None:
        """Lock all of these axes."""
        for axis in layout:
            self.lock(axis, operator, why)

    def mark(self, operator: Operator, position: int, axis: int, role: Role) -> None:
        """Say what an axis of a constant means."""
        operand = operator.operand(position)
        if operand is not None and operand.constant:
            self.reads[-1].roles[position, axis] = role

    def count(self, attribute: str, labels: Axis) -> None:
        """The attribute says how many of these places there are."""
        if labels is not None:
            self.reads[-1].counts[attribute] = labels

    def choose(self, operator: Operator, options: int) -> int:
        """Which of several sound ways to take."""
        self._asked += 1
        self._latest = f"{operator.id} {self._asked}"
        self.choices[self._latest] = Choice(options)
        return self._chosen.get(self._latest, 0) % options

    def chosen(self, labels: Axis) -> None:
        """What is left to prune by the way that was taken last."""
        self.choices[self._latest].labels = labels

    def outputs(self, names: Sequence[str]) -> None:
        """What leaves the graph keeps its shape."""
        for name in names:
            for axis in self._layouts.get(name, ()):
                if axis is not None:
                    self.atoms.lock(axis, f"the graph returns it as {name!r}")

    def _activation(self, operand: Operand) -> Layout:
        return self._layouts.get(operand.name, (None,) * len(operand.shape))

    def _leaf(self, operator: Operator, operand: Operand) -> Layout:
        """Weights of products are shared by their readers; of all else each reader may have its own copy."""
        if operator.kind not in _PRODUCTS or sum(size > 1 for size in operand.shape) <= 1:
            return self._fresh(operand)
        if operand.name not in self._leaves:
            self._leaves[operand.name] = self._fresh(operand)
        return self._leaves[operand.name]

    def _fresh(self, operand: Operand) -> Layout:
        return tuple(self.atoms.fresh(size) if size > 1 else None for size in operand.shape)


def described(operator: Operator) -> str:
    """How reasons name an operator."""
    return f"{operator.id!r} ({operator.op_type})"
