"""What each possible segment costs, and how it moves tensors between homes: the pieces of the exact optimum.

A state at a position is, for every tensor that some later group still reads, the set of its homes (a bit mask). All
placements whose tensors live in the same memory lead to the same next state, so of those only the cheapest counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.surrogate.chains import chain_costs, position_work
from hetrl.device_bridge.surrogate.cost_model import HOST_HOME, CostModel
from hetrl.device_bridge.surrogate.schedule import Placed
from hetrl.device_bridge.surrogate.tables import MEMORIES
from hetrl.plan import Axis, Memory

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
State = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """A placed segment and the part of its cost that no state changes."""

    placed: Placed
    cost_ms: float


@dataclass(frozen=True)
class Move:
    """How a segment's operands get to where it reads them.

    :param home: where the segment's tensors live.
    :param read: (place in the state, (home sets, homes) conversion table) of every operand from outside.
    :param kept: for each tensor of the next state its place in this one, or -1 if the segment makes it; and whether
        the segment brings a copy to `home`.
    """

    home: int
    read: tuple[tuple[int, Floats], ...]
    kept: tuple[tuple[int, bool], ...]

    def cost_ms(self, state: State) -> float:
        return float(sum(table[state[place], self.home] for place, table in self.read))

    def after(self, state: State) -> State:
        fresh = 1 << self.home
        return tuple(fresh if place < 0 else state[place] | (fresh if copied else 0) for place, copied in self.kept)


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
        self._possible = possible
        self._model = model
        self._memory = memory
        work = position_work(model, memory, window, np.inf if slice_ms is None else slice_ms, duty)
        stall = model.tables.stall_ms
        self._work = work * (1 + model.contention)[None, :, None]
        if stall is not None:
            self._work = self._work + stall[MEMORIES.index(memory)]
        self._chains = chain_costs(model, self._work, memory)
        self._workload = model.tables.workload
        self.positions = len(self._workload.items)
        self.steps = cache(self._steps)
        self._live = cache(self._live_at)

    def first_state(self) -> State:
        """All inputs lie in host memory."""
        return tuple(1 << HOST_HOME for _ in self._live(0))

    def finish_ms(self, state: State) -> float:
        """Bringing the graph's outputs to host memory."""
        tables = self._model.conversion_ms
        return float(
            sum(tables[t, homes, HOST_HOME] for t, homes in zip(self._live(self.positions), state, strict=True))
        )

    def relaxed_bound_ms(self) -> float:
        """Lower bound: every operand already lies where it is read."""
        best = [0.0] + [np.inf] * self.positions
        for position in range(self.positions):
            for step, _ in self.steps(position):
                end = step.placed.end + 1
                best[end] = min(best[end], best[position] + step.cost_ms)
        return float(best[-1])

    def _live_at(self, position: int) -> tuple[int, ...]:
        """Tensors made before `position` that it or a later position reads."""
        work = self._workload
        return tuple(
            t
            for t in range(len(work.elements))
            if work.made_at[t] < position <= work.last_use[t] and (work.made_at[t] >= 0 or t in work.inputs)
        )

    def _steps(self, start: int) -> tuple[tuple[Step, Move], ...]:
        """All segments worth starting at a position: per end and home, the cheapest."""
        best: dict[tuple[int, int], Step] = {}
        tables = self._model.tables
        m = MEMORIES.index(self._memory)
        fixed, rate = (a[:, m] for a in self._model.share_rates)
        leaves = max(self._workload.last_use[t] for t in self._workload.items[start].writes) > start
        for o, option in enumerate(tables.options):
            if not self._possible[start, o] or option.axis is Axis.HEIGHT:
                continue
            cost = float(self._work[start, o, 0])
            if option.split:
                shared = sum(float(read[o, 0]) for read in tables.host_in[start])
                cost += float(fixed[o] + rate[o] * (shared + (float(tables.host_out[start, o, 0]) if leaves else 0.0)))
            self._offer(best, Step(Placed(start, start, o, self._memory), cost))
        chains = self._chains
        total = chains.work_ms[start] + chains.share_ms[start] + chains.tail_ms[start]
        for offset in range(min(total.shape[0], self.positions - start)):
            for s, o in enumerate(chains.options):
                if np.isfinite(total[offset, s]) and self._possible[start : start + offset + 1, o].all():
                    placed = Placed(start, start + offset, int(o), self._memory)
                    self._offer(best, Step(placed, float(total[offset, s])))
        return tuple((step, self._move(start, end, home)) for (end, home), step in best.items())

    def _offer(self, best: dict[tuple[int, int], Step], step: Step) -> None:
        owner = self._model.tables.options[step.placed.option].processors[0]
        home = int(self._model.home_of[owner, MEMORIES.index(self._memory)])
        known = best.get((step.placed.end, home))
        if known is None or step.cost_ms < known.cost_ms:
            best[step.placed.end, home] = step

    def _move(self, start: int, end: int, home: int) -> Move:
        before, after = self._live(start), self._live(end + 1)
        place = {tensor: i for i, tensor in enumerate(before)}
        read = {r.tensor for k in range(start, end + 1) for r in self._workload.items[k].reads if r.tensor in place}
        return Move(
            home,
            tuple((place[t], self._model.conversion_ms[t]) for t in sorted(read)),
            tuple((place.get(t, -1), t in read) for t in after),
        )
