"""The exact optimum: dynamic programming over chains and over where live tensors lie.

Latency is a sum over segments (CoDL, equation 2), so the best way to finish depends only on the position and on the
homes of the tensors that later groups still read. States are those homes; transitions are segments. Where a graph
keeps so many tensors alive that states would explode, only the best are kept, and a relaxation in which every
operand is read at its cheapest gives the proven lower bound instead.

Plans whose independent branches run side by side have no such sum: `makespan` finds the best one, with a bound, if the
graph has branches.

A frame limit is not additive. Every setting of window, slicing and caps is solved for latency alone; its optimum
bounds what the setting can give, and counts as a candidate if it keeps the limit. Branches side by side are tried
without window, slicing and caps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hetrl.agents.makespan import DETERMINISTIC_TIME, GAIN, solve_makespan
from hetrl.agents.segment_costs import Bools, SegmentCosts, State
from hetrl.condition import Condition
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule, batch_of
from hetrl.envs.space import DUTIES, QUEUE_WINDOWS, SLICES_MS, PlanSpace
from hetrl.objective import Objective
from hetrl.plan import Memory

BEAM = 512  # states kept per position
TOLERANCE = 1e-9  # of a latency, for sums taken in another order


@dataclass(frozen=True)
class Exact:
    """The best known schedule and a proven bound; `proven` when they meet (to 1e-5 where branches may overlap)."""

    schedule: Schedule | None
    prune_ratio: float
    latency_ms: float
    bound_ms: float

    @property
    def proven(self) -> bool:
        return self.schedule is not None and self.latency_ms == self.bound_ms


def exact(space: PlanSpace, objective: Objective, condition: Condition) -> Exact:
    """The plan of the space that minimises latency within the objective's budgets.

    `schedule` is None, and `latency_ms` inf, if no candidate keeps the frame limit.
    """
    best = Exact(None, 0.0, np.inf, np.inf)
    bound = np.inf
    limit = objective.max_frame_drop_rate if condition.ui is not None else None
    settings = _settings(len(space.engine.processors), limit is not None)
    for ratio in space.prune_ratios:
        model = space.device.cost_model(ratio, condition=condition)
        possible = space.possible_at(ratio)  # so every plan solved for keeps the accuracy budget
        for memory in space.memories:
            hopeless: list[_Setting] = []
            for setting in settings:
                if any(setting.no_faster_than(other) for other in hopeless):
                    continue
                solved = _solve(model, memory, setting, possible)
                if solved.bound_ms >= best.latency_ms:
                    hopeless.append(setting)  # nor does it lower the bound below what is known
                    continue
                bound = min(bound, solved.bound_ms)
                schedule = setting.schedule(solved.segments)
                latency_ms = _measured(space, model, schedule, condition, objective)
                if latency_ms is not None and latency_ms < best.latency_ms:
                    best = Exact(schedule, ratio, latency_ms, bound)
    tolerance = TOLERANCE
    if best.schedule is not None and space.branches:
        best, bound = _side_by_side(space, condition, objective, best, bound)
        tolerance = GAIN
    if best.latency_ms <= bound * (1 + tolerance):
        bound = best.latency_ms
    return Exact(best.schedule, best.prune_ratio, best.latency_ms, bound)


def _side_by_side(
    space: PlanSpace, condition: Condition, objective: Objective, best: Exact, bound: float
) -> tuple[Exact, float]:
    """The best of a serial plan and of plans whose branches overlap, and a bound on both kinds."""
    problems = [(ratio, memory) for ratio in reversed(space.prune_ratios) for memory in space.memories]
    for ratio, memory in problems:
        model = space.device.cost_model(ratio, condition=condition)
        seconds = DETERMINISTIC_TIME / len(problems)
        found = solve_makespan(model, memory, space.possible_at(ratio), best.latency_ms, seconds)
        bound = min(bound, found.bound_ms)
        if found.segments is None:
            continue
        schedule = Schedule(found.segments, overlap=True)
        better = _measured(space, model, schedule, condition, objective)
        if better is not None and better < best.latency_ms:
            best = Exact(schedule, ratio, better, bound)
    return best, bound


def _measured(
    space: PlanSpace, model: CostModel, schedule: Schedule, condition: Condition, objective: Objective
) -> float | None:
    """Latency of a schedule, None where it breaks the memory's or the frames' limit."""
    processors = len(space.engine.processors)
    answers = model.evaluate(batch_of([schedule], space.groups, processors), condition.ui)
    limited = objective.max_frame_drop_rate is not None and condition.ui is not None
    drop_rate = float(answers.frame_drop_rate[0]) if limited else None
    fits = answers.peak_memory_mb[0] <= space.device.memory_limit_mb
    return float(answers.latency_ms[0]) if fits and objective.keeps(0.0, drop_rate) else None


@dataclass(frozen=True)
class _Setting:
    """What holds for a whole plan besides its memory type; every field slows it down, the more the smaller it is."""

    window: int
    slice_ms: float | None
    duty: tuple[float, ...]

    def no_faster_than(self, other: _Setting) -> bool:
        """Whether no schedule runs faster under this setting than under the other."""
        mine, its = self.slice_ms or np.inf, other.slice_ms or np.inf
        return (
            self.window <= other.window
            and mine <= its
            and all(a <= b for a, b in zip(self.duty, other.duty, strict=True))
        )

    def schedule(self, segments: tuple[Placed, ...]) -> Schedule:
        window = None if self.window == QUEUE_WINDOWS[0] else self.window
        return Schedule(segments, self.duty, window, self.slice_ms)


def _settings(processors: int, limited: bool) -> list[_Setting]:
    """Settings worth solving, those that may make others hopeless first.

    Without a frame limit, caps and small windows only cost time. With one, caps are tried on one processor at a time.
    """
    full = (1.0,) * processors
    if not limited:
        return [_Setting(QUEUE_WINDOWS[0], None, full)]
    capped = [
        tuple(duty if q == p else 1.0 for q in range(processors)) for p in range(processors) for duty in DUTIES[1:]
    ]
    return [_Setting(w, s, duty) for duty in (full, *capped) for s in SLICES_MS for w in QUEUE_WINDOWS]


@dataclass(frozen=True)
class _Solved:
    segments: tuple[Placed, ...]
    bound_ms: float


@dataclass(frozen=True)
class _Node:
    """Best way to reach a state: cost, the state before, and the segment in between."""

    cost_ms: float
    before: State
    placed: Placed | None


def _solve(model: CostModel, memory: Memory, setting: _Setting, possible: Bools) -> _Solved:
    segments = SegmentCosts(model, memory, setting.window, setting.slice_ms, setting.duty, possible)
    n = segments.positions
    layers: list[dict[State, _Node]] = [{} for _ in range(n + 1)]
    layers[0][segments.first_state()] = _Node(0.0, (), None)
    complete = True
    for position in range(n):
        layer = layers[position]
        if len(layer) > BEAM:
            complete = False
            layer = dict(sorted(layer.items(), key=lambda entry: (entry[1].cost_ms, entry[0]))[:BEAM])
        for state, node in layer.items():
            for step, move in segments.steps(position):
                total = node.cost_ms + step.cost_ms + move.cost_ms(state)
                after = move.after(state)
                known = layers[step.placed.end + 1].get(after)
                if known is None or total < known.cost_ms:
                    layers[step.placed.end + 1][after] = _Node(total, state, step.placed)
    last = {state: node.cost_ms + segments.finish_ms(state) for state, node in layers[n].items()}
    state = min(last, key=lambda s: (last[s], s))
    bound = last[state] if complete else segments.relaxed_bound_ms()
    placed: list[Placed] = []
    position = n
    while position:
        found = layers[position][state]
        assert found.placed is not None  # only the first layer has none
        placed.append(found.placed)
        position, state = found.placed.start, found.before
    return _Solved(tuple(reversed(placed)), bound)
