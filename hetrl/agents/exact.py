"""The exact optimum: dynamic programming over chains and over where live tensors lie.

Latency is a sum over segments (CoDL, equation 2), so the best way to finish depends only on the position and on the
homes of the tensors that later groups still read. States are those homes; transitions are segments. A relaxation in
which every operand already lies where it is read bounds the rest of any way, as in A*, and what a state can win by its
homes is bounded by what moving them costs: so few ways are worth following. Where a graph keeps so many tensors alive
that they are too many nevertheless, only the best are kept, and the relaxation gives the proven lower bound instead.

Plans whose independent branches run side by side have no such sum: `makespan` finds the best of those in which every
group is placed or split on its own, with a bound, if the graph has branches.

A frame limit is not additive. Every setting of window, slicing and caps is solved for latency alone; its optimum
bounds what the setting can give, and counts as a candidate if it keeps the limit. Branches side by side are tried
without window, slicing and caps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hetrl.agents.makespan import EFFORT, TOLERANCE, least_ms, solve_makespan
from hetrl.agents.paces import Pace, paces
from hetrl.agents.segment_costs import Floats, Ints, Move, SegmentCosts
from hetrl.compression import NO_COMPRESSION, Compression
from hetrl.condition import Condition
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule, batch_of
from hetrl.envs.space import PlanSpace
from hetrl.objective import Objective

BEAM = 512  # states kept per position


@dataclass(frozen=True)
class Exact:
    """The best known schedule and a proven bound; `proven` when they meet."""

    schedule: Schedule | None
    compression: Compression
    latency_ms: float
    bound_ms: float

    @property
    def proven(self) -> bool:
        return self.schedule is not None and self.latency_ms == self.bound_ms


def exact(space: PlanSpace, objective: Objective, condition: Condition) -> Exact:
    """The plan of the space that minimises latency within the objective's budgets.

    `schedule` is None, and `latency_ms` inf, if no candidate keeps the frame limit or fits into memory.
    """
    best = additive(space, objective, condition)
    return side_by_side(space, objective, condition, best) if space.branches else best


def additive(space: PlanSpace, objective: Objective, condition: Condition) -> Exact:
    """The best of the plans whose groups run one after the other, by dynamic programming; the bound is on those."""
    best = _on_one_processor(space, objective, condition)
    bound = np.inf
    limited = objective.max_frame_drop_rate is not None and condition.ui is not None
    tried = paces(space, limited=limited)
    for compression in space.compressions:
        model = space.device.cost_model(compression, condition=condition)
        possible = space.possible_at(compression)  # so every plan solved for keeps the accuracy budget
        for memory in space.memories:
            hopeless: list[Pace] = []
            for pace in tried:
                if any(pace.no_faster_than(other) for other in hopeless):
                    continue  # nor would it lower the bound
                segments = SegmentCosts(model, memory, pace.window, pace.slice_ms, pace.duty, possible)
                solved = _solve(segments, best.latency_ms)
                bound = min(bound, solved.bound_ms)
                if solved.segments is None:
                    hopeless.append(pace)
                    continue
                schedule = pace.schedule(solved.segments)
                latency_ms = _measured(space, model, schedule, condition, objective)
                if latency_ms is not None and latency_ms < best.latency_ms:
                    best = Exact(schedule, compression, latency_ms, bound)
    return _certified(best, bound)


def _on_one_processor(space: PlanSpace, objective: Objective, condition: Condition) -> Exact:
    """The best single processor: something that keeps the budgets, if the CPU alone does."""
    best = Exact(None, NO_COMPRESSION, np.inf, np.inf)
    for compression in space.compressions:
        model = space.device.cost_model(compression, condition=condition)
        everywhere = space.possible_at(compression).all(axis=0)
        for option in np.flatnonzero(space.single & everywhere).tolist():
            for memory in space.memories:
                schedule = Schedule((Placed(0, space.groups - 1, option, memory),))
                latency_ms = _measured(space, model, schedule, condition, objective)
                if latency_ms is not None and latency_ms < best.latency_ms:
                    best = Exact(schedule, compression, latency_ms, np.inf)
    return best


def _certified(best: Exact, bound_ms: float) -> Exact:
    """The best with its bound, which is its latency if they meet."""
    return replace(best, bound_ms=best.latency_ms if best.latency_ms <= bound_ms * (1 + TOLERANCE) else bound_ms)


def side_by_side(space: PlanSpace, objective: Objective, condition: Condition, best: Exact) -> Exact:
    """The best of a serial plan and of plans whose branches overlap, and a bound on both kinds."""
    problems = []
    for compression in space.compressions:
        model, possible = space.device.cost_model(compression, condition=condition), space.possible_at(compression)
        for memory in space.memories:
            problems.append((least_ms(model, memory, possible), compression, memory, model, possible))
    problems.sort(key=lambda problem: problem[0])
    if best.schedule is None:
        return replace(best, bound_ms=min(best.bound_ms, problems[0][0]))
    bound = best.bound_ms
    hopeful = sum(problem[0] < best.latency_ms for problem in problems)
    for _, compression, memory, model, possible in problems[:hopeful]:  # none else is faster than what is known
        found = solve_makespan(model, memory, possible, best.latency_ms, EFFORT // hopeful)
        bound = min(bound, found.bound_ms)
        if found.segments is None:
            continue
        schedule = Schedule(found.segments, overlap=True)
        latency_ms = _measured(space, model, schedule, condition, objective)
        if latency_ms is not None and latency_ms < best.latency_ms:
            best = Exact(schedule, compression, latency_ms, bound)
    return _certified(best, bound)


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
class _Solved:
    """`segments` are None if every plan takes as long as the limit, or longer."""

    segments: tuple[Placed, ...] | None
    bound_ms: float


@dataclass(frozen=True)
class _Layer:
    """Ways to a position: (K,) cost, (K, tensors) state, (K, 2) number of the last move, and of the way before it."""

    costs_ms: Floats
    states: Ints
    origin: Ints

    @staticmethod
    def of(pieces: list[_Layer]) -> _Layer:
        """All ways of several layers."""
        if not pieces:
            return _Layer(np.empty(0), np.empty((0, 0), dtype=np.int64), np.empty((0, 2), dtype=np.int64))
        costs, states, origins = zip(*((p.costs_ms, p.states, p.origin) for p in pieces), strict=True)
        return _Layer(np.concatenate(costs), np.concatenate(states), np.concatenate(origins))

    def take(self, chosen: list[int]) -> _Layer:
        return _Layer(self.costs_ms[chosen], self.states[chosen], self.origin[chosen])


def _solve(segments: SegmentCosts, limit_ms: float) -> _Solved:
    """The best placements below a limit.

    A way is left out if another is at least as good whatever follows; if its cost and the relaxed rest are not below
    what is known; or, for time's sake, if it is not among the cheapest `BEAM` (then its cost and the relaxed rest bound
    what is lost).
    """
    likely, likely_ms = _relaxed(segments)
    found, known_ms = (likely, likely_ms) if likely_ms < limit_ms else (None, limit_ms)
    n, bound_ms = segments.positions, known_ms
    moves: list[Move] = []
    layers: list[_Layer] = []
    came: list[list[_Layer]] = [[] for _ in range(n + 1)]
    came[0].append(_Layer(np.zeros(1), segments.first_states(), np.zeros((1, 2), dtype=np.int64)))
    for position in range(n + 1):
        layer, lost_ms = _undominated(_Layer.of(came[position]), segments.regret_ms(position))
        layers.append(layer)
        bound_ms = min(bound_ms, lost_ms + float(segments.rest_ms[position]))
        if position == n or not len(layer.costs_ms):
            continue
        for move in segments.moves(position, known_ms - float(layer.costs_ms[0])):
            end = move.placed.end + 1
            costs = layer.costs_ms + move.costs_ms(layer.states)
            good = np.flatnonzero(costs + segments.rest_ms[end] < known_ms)
            if len(good):
                origin = np.stack([np.full(len(good), len(moves)), good], axis=1)
                came[end].append(_Layer(costs[good], move.after(layer.states[good]), origin))
                moves.append(move)
    if not len(layers[n].costs_ms):
        return _Solved(found, bound_ms)
    placed: list[Placed] = []
    position, way = n, 0
    while position:
        number, way = layers[position].origin[way]
        placed.append(moves[number].placed)
        position = placed[-1].start
    return _Solved(tuple(reversed(placed)), min(bound_ms, float(layers[n].costs_ms[0])))


def _relaxed(segments: SegmentCosts) -> tuple[tuple[Placed, ...], float]:
    """The placements that the relaxation likes best, and what they really cost: something to beat."""
    moves, states, cost_ms = tuple(segments.relaxed_way()), segments.first_states(), 0.0
    for move in moves:
        cost_ms += float(move.costs_ms(states)[0])
        states = move.after(states)
    return tuple(move.placed for move in moves), cost_ms


def _undominated(ways: _Layer, regret_ms: Floats) -> tuple[_Layer, float]:
    """At most `BEAM` ways, cheapest first, that none is sure to beat; and what the cheapest lost one costs, or inf."""
    left = np.argsort(ways.costs_ms, kind="stable")
    tensors = np.arange(ways.states.shape[1])
    kept: list[int] = []
    while len(left) and len(kept) < BEAM:
        first, left = int(left[0]), left[1:]
        kept.append(first)
        regrets = regret_ms[tensors, ways.states[first], ways.states[left]].sum(axis=1)
        left = left[ways.costs_ms[first] + regrets > ways.costs_ms[left]]
    return ways.take(kept), float(ways.costs_ms[left[0]]) if len(left) else np.inf
