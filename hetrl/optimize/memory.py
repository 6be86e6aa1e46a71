"""Memory for the tensors between fusion groups: who lives when, and who may lie where somebody else has died.

Offsets are assigned greedily by size: the largest buffer first, each into the smallest gap that is free for its whole
life. That is what TensorFlow Lite's arena planner does (tensorflow/lite/arena_planner.cc, simple_memory_arena.cc; the
strategy is compared with others by Pisarchyk and Lee, arXiv 2001.03288). Weights are not part of an arena, and all
buffers are taken to lie in one memory: copies in an accelerator's own are not counted here but by the cost model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hetrl.device_bridge.surrogate.workload import workload_of
from hetrl.errors import UsageError
from hetrl.graph import OperatorGraph
from hetrl.plan import Plan
from hetrl.plan_check import check_plan

ALIGNMENT = 64  # bytes; TensorFlow Lite's kDefaultTensorAlignment


@dataclass(frozen=True)
class Buffer:
    """A tensor's memory, needed from position `first` of the execution order to `last`, both included.

    :param size: bytes.
    """

    name: str
    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are alive at some position."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Arena:
    """Buffers with the byte offset of each."""

    buffers: tuple[Buffer, ...]
    offsets: tuple[int, ...]

    @cached_property
    def peak_bytes(self) -> int:
        """Size of the memory that holds them all."""
        return max((o + b.size for o, b in zip(self.offsets, self.buffers, strict=True)), default=0)

    @cached_property
    def sum_bytes(self) -> int:
        """What they would take if each had memory of its own."""
        return sum(b.size for b in self.buffers)

    @cached_property
    def bound_bytes(self) -> int:
        """The most that is alive at any position: no assignment needs less."""
        moments = {b.first for b in self.buffers}
        return max((sum(b.size for b in self.buffers if b.first <= t <= b.last) for t in moments), default=0)


def lifetimes(graph: OperatorGraph, order: Sequence[int] | None = None) -> tuple[Buffer, ...]:
    """The graph's inputs and what its groups make; tensors inside a group need no memory.

    :param order: group indices, topological; None: the graph's own order.
    """
    work = workload_of(graph, order)
    first = work.made_at
    return tuple(
        Buffer(tensor.name, tensor.bytes, max(first[i], 0), max(work.last_use[i], first[i], 0))
        for i, tensor in enumerate(graph.tensors)
        if first[i] >= 0 or i in work.inputs
    )


def plan_lifetimes(plan: Plan, graph: OperatorGraph) -> tuple[Buffer, ...]:
    """The same in a plan's execution order.

    :raises PlanError: the plan is not one of this graph.
    """
    return lifetimes(graph, [group for segment in check_plan(plan, graph) for group in segment])


def allocate(buffers: Sequence[Buffer], alignment: int = ALIGNMENT) -> Arena:
    """Greedy by size; sizes are rounded up to `alignment` bytes, so that every offset is aligned."""
    if alignment < 1:
        raise UsageError(f"an alignment of {alignment} bytes makes no sense", "1 or more")
    rounded = tuple(Buffer(b.name, -(-b.size // alignment) * alignment, b.first, b.last) for b in buffers)
    offsets: dict[int, int] = {}
    for index in sorted(range(len(rounded)), key=lambda i: (-rounded[i].size, rounded[i].first, i)):
        taken = sorted((offsets[i], rounded[i].size) for i in offsets if rounded[i].meets(rounded[index]))
        offsets[index] = _best_gap(taken, rounded[index].size)
    return Arena(rounded, tuple(offsets[i] for i in range(len(rounded))))


def _best_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """Offset of the smallest gap of at least `size` between (offset, size) pairs in ascending order, else their end."""
    end, best, best_gap = 0, -1, 0
    for offset, length in taken:
        gap = offset - end
        if gap >= size and (best < 0 or gap < best_gap):
            best, best_gap = end, gap
        end = max(end, offset + length)
    return best if best >= 0 else end
