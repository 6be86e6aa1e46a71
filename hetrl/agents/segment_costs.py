"""What each possible segment costs, and how it moves tensors between homes: the pieces of the exact optimum.

A state at a position is, for every tensor that a later group reads, the set of its homes (a bit mask; bit 0 is host
memory, the others the accelerators' memories in the plan's memory type). An output of the graph is brought to host
memory right after its last reader: that is never cheaper later. All placements whose tensors live in the same memory
lead to the same next state, so of those only the cheapest counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.surrogate.chains import chain_costs, position_work
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.schedule import Placed
from hetrl.device_bridge.surrogate.tables import MEMORIES
from hetrl.plan import Memory

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
HOST = 0  # the first of the homes that a plan of one memory type has


@dataclass(frozen=True)
class Move:
    """A placed segment, the part of its cost that no state changes, and how its operands get to where it reads them.

    :param paid: (place in the state, (home sets,) ms) of every operand from outside, and of outputs that it reads last.
    :param kept: for each tensor of the next state its place in this one, or -1 if the segment makes it.
    :param fresh: for each the home set that the segment adds.
    """

    placed: Placed
    cost_ms: float
    paid: tuple[tuple[int, Floats], ...]
    kept: Ints
    fresh: Ints

    def costs_ms(self, states: Ints) -> Floats:
        """(K,) what it costs from each of (K, tensors) states."""
        costs = np.full(len(states), self.cost_ms)
        for place, table in self.paid:
            costs += table[states[:, place]]
        return costs

    def after(self, states: Ints) -> Ints:
        """(K, tensors of the next state) where it leads from each of (K, tensors) states."""
        return np.where(self.kept >= 0, states[:, self.kept] if states.shape[1] else 0, 0) | self.fresh


class SegmentCosts:
    """Segments of one model in one memory type, under fixed caps, window and slicing.

    :param possible: (n, O) which options a plan may choose for which group.
    """

    def __init__(
        self,
        model: CostModel,
        memory: Memory,
        window: int,
        slice_ms: float | None,
        duty: tuple[float, ...],
        possible: Bools,
    ) -> None:
        self._model, self._memory, self._possible = model, memory, possible
        self._m = MEMORIES.index(memory)
        self._workload = model.tables.workload
        self.positions = len(self._workload.items)
        homes = np.unique(model.home_of[:, self._m])  # HOST_HOME is the least
        self._home = np.searchsorted(homes, model.home_of[model.owner, self._m])  # (O,)
        sets = np.arange(1 << len(homes))
        masks = sum(((sets >> i) & 1) << home for i, home in enumerate(homes.tolist()))
        self._way_ms = model.conversion_ms[:, masks][:, :, homes]  # (tensors, home sets, homes)
        self._work = work_ms(model, memory, window, slice_ms, duty)
        self._live = tuple(map(self._live_at, range(self.positions + 1)))
        self._cost_ms, self._option = self._cheapest()
        self.rest_ms = self._rest()

    def first_states(self) -> Ints:
        """(1, tensors): all inputs lie in host memory."""
        return np.full((1, len(self._live[0])), 1 << HOST, dtype=np.int64)

    def regret_ms(self, position: int) -> Floats:
        """(tensors, home sets, home sets): what having the first set of homes can cost more than having the second.

        Whatever follows reads a tensor for the first time at each home at most once, and both sets grow alike.
        """
        way = self._way_ms[list(self._live[position]), 1:]
        more = np.maximum(0.0, way[:, :, None] - way[:, None, :]).sum(axis=-1)
        return np.pad(more, ((0, 0), (1, 0), (1, 0)))  # no tensor is nowhere

    def moves(self, start: int, below_ms: float) -> Iterator[Move]:
        """All segments worth starting at a position, as far as the relaxed way to the end is below a limit."""
        total = self._cost_ms[start] + self.rest_ms[start + 1 : start + 1 + self._cost_ms.shape[1], None]
        for offset, home in np.argwhere(total < below_ms).tolist():
            yield self._move(start, start + offset, home)

    def relaxed_way(self) -> Iterator[Move]:
        """The segments that would be the best ones if operands already lay where they are read."""
        start = 0
        while start < self.positions:
            total = self._cost_ms[start] + self.rest_ms[start + 1 : start + 1 + self._cost_ms.shape[1], None]
            offset, home = np.unravel_index(total.argmin(), total.shape)
            yield self._move(start, start + int(offset), int(home))
            start += int(offset) + 1

    def _rest(self) -> Floats:
        """(n + depth,) lower bound on the way from each position to the end: operands lie where they are read."""
        depth = self._cost_ms.shape[1]
        rest = np.full(self.positions + depth, np.inf)
        rest[self.positions] = 0.0
        fastest = self._cost_ms.min(axis=2)
        for start in reversed(range(self.positions)):
            rest[start] = (fastest[start] + rest[start + 1 : start + 1 + depth]).min()
        return rest

    def _live_at(self, position: int) -> tuple[int, ...]:
        """Tensors made before `position` that it or a later position reads."""
        work = self._workload
        return tuple(
            t
            for t, readers in enumerate(work.readers)
            if readers and work.made_at[t] < position <= readers[-1] and (work.made_at[t] >= 0 or t in work.inputs)
        )

    def _cheapest(self) -> tuple[Floats, Ints]:
        """(n, depth, homes) cost of the cheapest segment per first position, length - 1 and home, and its option."""
        whole, chains = (
            alone_ms(self._model, self._memory, self._work, self._possible),
            chain_costs(self._model, self._work, self._memory),
        )
        total = chains.work_ms + chains.share_ms + chains.tail_ms  # (n, depth, S)
        n, depth, _ = total.shape
        allowed = self._possible[:, chains.options]
        for offset in range(min(depth, n)):  # a chain is possible where all of its positions are
            total[: n - offset, offset][~allowed[: n - offset]] = np.inf
            allowed = allowed[:-1] & self._possible[offset + 1 :, chains.options]
        homes = self._way_ms.shape[2]
        cost, option = np.full((n, depth, homes), np.inf), np.zeros((n, depth, homes), dtype=np.int64)
        for home in range(homes):
            singles = np.flatnonzero((self._home == home) & ~self._model.chained)
            heights = np.flatnonzero(self._home[chains.options] == home)
            if len(heights):
                best = total[..., heights].argmin(axis=2)
                cost[..., home] = np.take_along_axis(total[..., heights], best[..., None], axis=2)[..., 0]
                option[..., home] = chains.options[heights][best]
            best = whole[:, singles].argmin(axis=1)
            alone = whole[np.arange(n), singles[best]]
            shorter = alone <= cost[:, 0, home]
            cost[shorter, 0, home], option[shorter, 0, home] = alone[shorter], singles[best][shorter]
        return cost, option

    def _move(self, start: int, end: int, home: int) -> Move:
        work, before, after = self._workload, self._live[start], self._live[end + 1]
        place = {tensor: i for i, tensor in enumerate(before)}
        read = {r.tensor for k in range(start, end + 1) for r in work.items[k].reads if r.tensor in place}
        here = 1 << home
        paid = {t: self._way_ms[t, :, home] for t in sorted(read)}
        cost_ms = float(self._cost_ms[start, end - start, home])
        for tensor in self._returned(start, end):
            if tensor in read:
                sets = np.arange(self._way_ms.shape[1]) | here
                paid[tensor] = paid[tensor] + self._way_ms[tensor, sets, HOST]
            else:
                cost_ms += float(self._way_ms[tensor, here, HOST])
        return Move(
            Placed(start, end, int(self._option[start, end - start, home]), self._memory),
            cost_ms,
            tuple((place[t], table) for t, table in paid.items()),
            np.array([place.get(t, -1) for t in after], dtype=np.int64),
            np.array([here if t in read or t not in place else 0 for t in after], dtype=np.int64),
        )

    def _returned(self, start: int, end: int) -> list[int]:
        """Outputs of the graph that a segment is the last to touch."""
        work = self._workload
        last = ((t, work.readers[t][-1] if work.readers[t] else work.made_at[t]) for t in work.outputs)
        return [t for t, position in last if start <= position <= end]


def work_ms(model: CostModel, memory: Memory, window: int, slice_ms: float | None, duty: tuple[float, ...]) -> Floats:
    """(n, O, L) time that each position works under each option: its slowest part, slowed down by the others."""
    work = position_work(model, memory, window, np.inf if slice_ms is None else slice_ms, duty)
    work *= (1 + model.contention)[None, :, None]
    stall = model.tables.stall_ms
    return work if stall is None else work + stall[MEMORIES.index(memory)]


def alone_ms(model: CostModel, memory: Memory, work: Floats, possible: Bools) -> Floats:
    """(n, O) cost of each group as a segment of its own whose operands lie where it reads them, inf if impossible.

    :param work: what `work_ms` gives.
    :param possible: (n, O) which options a plan may choose for which group.
    """
    tables = model.tables
    fixed, rate = (a[:, MEMORIES.index(memory)] for a in model.share_rates)
    cost = np.where(possible, work[:, :, 0], np.inf)
    for k, item in enumerate(tables.workload.items):
        shared: dict[int, Floats] = {}
        for read, piece in zip(item.reads, tables.host_in[k], strict=True):
            had = shared.get(read.tensor, 0.0)  # as the cost model counts it, once if others read it too
            twice = len(tables.workload.readers[read.tensor]) > 1
            shared[read.tensor] = np.maximum(had, piece[:, 0]) if twice else had + piece[:, 0]
        leaves = max(tables.workload.last_use[t] for t in item.writes) > k
        moved = sum(shared.values()) + (tables.host_out[k, :, 0] if leaves else 0.0)
        cost[k] += np.where(model.split, fixed + rate * moved, 0.0)
    return cost
