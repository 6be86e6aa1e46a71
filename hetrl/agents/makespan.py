"""The best plan whose independent branches run side by side, by OR-Tools' CP-SAT.

Every fusion group runs whole on one processor, in the graph's order where they share one. Variables: which processor,
when it starts, when each processor is free after each position, which operands must be moved there (the first reader
on a processor pays; where others have copies, the nearest is assumed to be one), and whether an independent group runs
beside it. The solver's bound is a bound on what the cost model gives. One worker and a limit in deterministic time: the
same problem gives the same answer on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.surrogate.chains import position_work
from hetrl.device_bridge.surrogate.cost_model import HOST_HOME, CostModel
from hetrl.device_bridge.surrogate.schedule import Placed
from hetrl.device_bridge.surrogate.tables import MEMORIES
from hetrl.device_bridge.surrogate.workload import Workload
from hetrl.plan import DEFAULT_QUEUE_WINDOW, Memory

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
UNITS = 200_000_000  # the solver counts the limit in so many
GAIN = 1e-5  # of a latency: what is less than this faster is not, as rounding could have made it
DETERMINISTIC_TIME = 3.0  # of the solver; up to ten times as many seconds
ROUNDS = 3


@dataclass(frozen=True)
class Makespan:
    """The best placements found below the limit, None if there are none; and a proven lower bound."""

    segments: tuple[Placed, ...] | None
    bound_ms: float


def solve_makespan(
    model: CostModel, memory: Memory, possible: Bools, limit_ms: float, seconds: float = DETERMINISTIC_TIME
) -> Makespan:
    """Placements that take less than `limit_ms`, as short as can be found; `bound_ms` is `limit_ms` if there are none.

    :param possible: (n, O) which options a plan may choose for which group.
    :param seconds: the solver's limit in deterministic time.
    """
    problem = _Problem.of(model, memory, possible)
    bound_ms = problem.critical_path_ms()
    if bound_ms >= limit_ms * (1 - GAIN):
        return Makespan(None, limit_ms)
    try:
        from ortools.sat.python import cp_model
    except ImportError:  # without the extra `exact` the critical path is the bound
        return Makespan(None, bound_ms)
    segments = None
    for seed in range(ROUNDS):  # how long a search takes varies a lot; what one finds shortens the next
        formulation = _Formulation(cp_model.CpModel(), problem, limit_ms)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.linearization_level = 2  # all of the formulation: its relaxation is what proves
        solver.parameters.random_seed = seed
        solver.parameters.max_deterministic_time = seconds / ROUNDS
        status = solver.solve(formulation.model)
        if status == cp_model.INFEASIBLE:
            return Makespan(segments, limit_ms)
        bound_ms = max(bound_ms, min(limit_ms, solver.best_objective_bound * formulation.unit_ms))
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            segments, limit_ms = formulation.placed(solver, memory), solver.objective_value * formulation.unit_ms
        if status == cp_model.OPTIMAL:
            break
    return Makespan(segments, bound_ms)


def least_ms(model: CostModel, memory: Memory, possible: Bools) -> float:
    """Lower bound on all placements of whole groups, branches side by side: the longest way through the graph."""
    return _Problem.of(model, memory, possible).critical_path_ms()


@dataclass(frozen=True)
class _Problem:
    """Numbers of the formulation.

    :param work_ms: (n, P) time of each group on each processor, inf where it cannot run.
    :param move_ms: (tensors, P, P) time to bring a tensor from one processor's memory to another's.
    :param home: (P,) where a processor's tensors live.
    :param contention: by how much groups side by side slow each other down.
    """

    workload: Workload
    work_ms: Floats
    move_ms: Floats
    home: npt.NDArray[np.int64]
    contention: float

    @staticmethod
    def of(model: CostModel, memory: Memory, possible: Bools) -> _Problem:
        processors = len(model.tables.engine.processors)
        duty = (1.0,) * processors
        work = position_work(model, memory, DEFAULT_QUEUE_WINDOW, np.inf, duty)[:, :processors, 0]
        stall = model.tables.stall_ms
        if stall is not None:
            work = work + stall[MEMORIES.index(memory), :, :processors, 0]
        home = model.home_of[:, MEMORIES.index(memory)]
        move = model.conversion_ms[:, (1 << home)[:, None], home]
        work = np.where(possible[:, :processors], work, np.inf)
        return _Problem(model.tables.workload, work, move, home, model.side_by_side)

    @cached_property
    def least_move_ms(self) -> Floats:
        """(tensors, P) least time to bring a tensor to a processor from any other."""
        apart = np.where(np.eye(len(self.home), dtype=np.bool_), np.inf, self.move_ms).min(axis=1)
        return np.where(np.isfinite(apart), apart, 0.0)

    @cached_property
    def earliest_ms(self) -> Floats:
        """(n, P) lower bound on when a group on a processor is done: the longest of its ways, each at its shortest."""
        done = np.zeros_like(self.work_ms)
        for k, item in enumerate(self.workload.items):
            ready = np.zeros(len(self.home))
            for tensor in {r.tensor for r in item.reads}:
                made = self.workload.made_at[tensor]
                here = done[made] if made >= 0 else np.where(self.home == HOST_HOME, 0.0, np.inf)
                there = np.where(np.eye(len(here), dtype=np.bool_), np.inf, here).min(axis=1)
                ready = np.maximum(ready, np.minimum(here, there + self.least_move_ms[tensor]))
            done[k] = ready + self.work_ms[k]
        return done

    def critical_path_ms(self) -> float:
        """Lower bound: when the last group is done at the earliest."""
        return float(self.earliest_ms.min(axis=1).max())


class _Formulation:
    """The solver's model; times are whole numbers of `unit_ms`, rounded down."""

    def __init__(self, model: cp_model.CpModel, problem: _Problem, limit_ms: float) -> None:
        self.model, self._problem = model, problem
        self.unit_ms = limit_ms / UNITS
        self._horizon = self._units(limit_ms * (1 - GAIN))
        n, processors = problem.work_ms.shape
        self._on: list[list[Any]] = [[model.new_bool_var("") for _ in range(processors)] for _ in range(n)]
        self._end = [model.new_int_var(0, self._horizon, "") for _ in range(n)]
        free: list[Any] = [0] * processors
        for k in range(n):
            free = self._add_position(k, free)
        home = sum(self._outputs())
        makespan = model.new_int_var(0, self._horizon, "")
        model.add_max_equality(makespan, self._end)
        model.add(makespan + home <= self._horizon)
        model.minimize(makespan + home)

    def _add_position(self, k: int, free: Sequence[Any]) -> list[Any]:
        model, problem = self.model, self._problem
        item, on = problem.workload.items[k], self._on[k]
        model.add_exactly_one(on)
        for p, time in enumerate(problem.work_ms[k]):
            if not np.isfinite(time):
                model.add(on[p] == 0)
        moved: Any = 0
        for tensor in dict.fromkeys(r.tensor for r in item.reads):
            moved += sum(self._way(tensor, k, p, here) for p, here in enumerate(on))
        work = self._each(problem.work_ms[k], on)
        start = model.new_int_var(0, self._horizon, "")
        model.add(self._end[k] == start + moved + work + self._contention(k))
        self._add_implied(k, work)
        for tensor in {r.tensor for r in item.reads}:
            made = problem.workload.made_at[tensor]
            if made >= 0:
                model.add(start >= self._end[made])
        after = []
        for p, busy_until in enumerate(free):
            model.add(start >= busy_until).only_enforce_if(on[p])
            later = model.new_int_var(0, self._horizon, "")
            model.add(later >= busy_until)
            model.add(later >= self._end[k]).only_enforce_if(on[p])
            after.append(later)
        return after

    def _add_implied(self, k: int, work: Any) -> None:
        """What follows from the rest for whole numbers, but not for the fractions of the linear relaxation.

        What a group reads from another processor is moved before the group can work, whoever pays for it.
        """
        model, problem, on = self.model, self._problem, self._on[k]
        model.add(self._end[k] >= self._each(problem.earliest_ms[k], on))
        for tensor in dict.fromkeys(r.tensor for r in problem.workload.items[k].reads):
            made = problem.workload.made_at[tensor]
            for p, here in enumerate(on if made >= 0 else ()):
                move = self._units(problem.least_move_ms[tensor, p])
                if move:
                    model.add(self._end[k] >= self._end[made] + move * (here - self._on[made][p]) + work)

    def _each(self, times_ms: Floats, on: Sequence[Any]) -> Any:
        """Of some times, one per processor, that of the processor that a group is on."""
        return sum(self._units(time) * here for time, here in zip(times_ms, on, strict=True) if np.isfinite(time))

    def _contention(self, k: int) -> Any:
        """What a group loses if an independent one is placed on another processor."""
        problem, on = self._problem, self._on[k]
        if not problem.contention or not problem.workload.independent[k].any():
            return 0
        model, beside = self.model, self.model.new_bool_var("")
        for j in np.flatnonzero(problem.workload.independent[k]):
            for p, here in enumerate(on):  # both on p, or side by side
                model.add(beside >= here - self._on[j][p])
        lost: Any = 0
        for time, here in zip(problem.work_ms[k], on, strict=True):
            if np.isfinite(time):
                cost = self._units(time * problem.contention)
                lost += (mine := model.new_int_var(0, cost, ""))
                model.add(mine >= cost * (here + beside - 1))
        return lost

    def _way(self, tensor: int, before: int, to: int, wanted: Any) -> Any:
        """Time to bring a tensor to a processor where it is wanted before a position, and not there already.

        It comes from where it was made; where a reader has brought it elsewhere too, from the nearest place.
        """
        problem, model = self._problem, self.model
        made = problem.workload.made_at[tensor]
        sources = [p for p in range(len(self._on[0])) if p != to]
        cost = {p: self._units(problem.move_ms[tensor, p, to]) for p in sources}
        if not any(cost.values()):
            return 0
        earlier = [self._on[j] for j in problem.workload.readers[tensor] if j < before]
        moved, copied = model.new_bool_var(""), model.new_bool_var("")
        there: Any = int(problem.home[to] == HOST_HOME) if made < 0 else self._on[made][to]
        model.add(moved >= wanted - there - sum(row[to] for row in earlier))
        model.add(copied <= sum(row[p] for row in earlier for p in sources))
        way = model.new_int_var(0, self._horizon, "")
        for p, time in cost.items():
            origin: Any = int(problem.home[p] == HOST_HOME) if made < 0 else self._on[made][p]
            model.add(way >= time * (moved + origin - 1) - (time - min(cost.values())) * copied)
        return way

    def _outputs(self) -> list[Any]:
        """Cost of bringing each output to host memory."""
        host = int(np.flatnonzero(self._problem.home == HOST_HOME)[0])
        work = self._problem.workload
        return [self._way(tensor, len(work.items), host, 1) for tensor in work.outputs]

    def _units(self, ms: float) -> int:
        return int(np.floor(ms / self.unit_ms))

    def placed(self, solver: cp_model.CpSolver, memory: Memory) -> tuple[Placed, ...]:
        """The solution, one placement per group."""
        chosen = [next(p for p, on in enumerate(row) if solver.boolean_value(on)) for row in self._on]
        return tuple(Placed(k, k, p, memory) for k, p in enumerate(chosen))
