"""What the cost model sees of a model: fusion groups in execution order, with the tensors between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hetrl.graph import Geometry, InputRole, OperatorGraph, OpKind


@dataclass(frozen=True)
class Read:
    """An operand: index of the tensor, and how it is read."""

    tensor: int
    role: InputRole


@dataclass(frozen=True)
class WorkItem:
    """One fusion group at its place in the order.

    :param front: the first of two operators that low rank has made of one, `geometry` being the second's.
    :param op_types: ONNX operator types inside, for operator support.
    :param group: the group's index in the operator graph.
    """

    geometry: Geometry
    reads: tuple[Read, ...]
    writes: tuple[int, ...]
    weight_elements: int
    splits_height: bool
    splits_channels: bool
    op_types: frozenset[str]
    group: int
    front: Geometry | None = None


@dataclass(frozen=True)
class Workload:
    """Groups in execution order; `elements` of each tensor; graph inputs and outputs as tensor indices."""

    items: tuple[WorkItem, ...]
    elements: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @cached_property
    def made_at(self) -> tuple[int, ...]:
        """Position that writes each tensor, -1 for graph inputs."""
        made = [-1] * len(self.elements)
        for position, item in enumerate(self.items):
            for tensor in item.writes:
                made[tensor] = position
        return tuple(made)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """Positions that read each tensor, ascending."""
        readers: list[list[int]] = [[] for _ in self.elements]
        for position, item in enumerate(self.items):
            for read in item.reads:
                if position not in readers[read.tensor]:
                    readers[read.tensor].append(position)
        return tuple(tuple(r) for r in readers)

    @cached_property
    def last_use(self) -> tuple[int, ...]:
        """Last position that reads each tensor; len(items) for graph outputs, where it is made if nobody does."""
        last = [readers[-1] if readers else made for readers, made in zip(self.readers, self.made_at, strict=True)]
        for tensor in self.outputs:
            last[tensor] = len(self.items)
        return tuple(last)

    @cached_property
    def independent(self) -> npt.NDArray[np.bool_]:
        """(n, n) whether two groups that take time do not depend on each other: they could run side by side."""
        n = len(self.items)
        before = np.eye(n, dtype=np.bool_)  # what each position depends on, itself included
        for k, item in enumerate(self.items):
            for read in item.reads:
                if self.made_at[read.tensor] >= 0:
                    before[k] |= before[self.made_at[read.tensor]]
        works = np.array([item.geometry.kind is not OpKind.VIEW for item in self.items])
        apart: npt.NDArray[np.bool_] = ~(before | before.T) & works & works[:, None]
        return apart


def workload_of(graph: OperatorGraph, order: Sequence[int] | None = None) -> Workload:
    """The graph's groups in `order` (group indices, topological), by default the graph's own."""
    order = range(len(graph.groups)) if order is None else order
    index = {tensor.name: i for i, tensor in enumerate(graph.tensors)}
    items = []
    for position in order:
        group = graph.groups[position]
        items.append(
            WorkItem(
                geometry=graph.group_geometry(position),
                reads=tuple(Read(index[i.tensor], i.role) for i in group.inputs),
                writes=tuple(index[name] for name in group.outputs),
                weight_elements=sum(graph.nodes[n].weight_elements for n in group.nodes),
                splits_height=group.splits_height,
                splits_channels=group.splits_channels,
                op_types=frozenset(graph.nodes[n].op_type for n in group.nodes),
                group=position,
                front=graph.group_front(position),
            )
        )
    return Workload(
        items=tuple(items),
        elements=tuple(tensor.elements for tensor in graph.tensors),
        inputs=tuple(index[name] for name in graph.inputs),
        outputs=tuple(index[name] for name in graph.outputs),
    )
