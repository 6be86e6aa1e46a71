"""The guided search: every move is a legal plan, the correction learns what is wrong, the search profits from it."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hetrl
from hetrl.agents.auto import AutoConfig, for_budget
from hetrl.agents.hybrid.annealing import anneal
from hetrl.agents.hybrid.correction import PRIOR_SD, Correction, Effects, Segments
from hetrl.agents.hybrid.moves import Moves
from hetrl.agents.hybrid.output_errors import OutputErrors
from hetrl.agents.hybrid.ranking import Ranking
from hetrl.agents.hybrid.search import GuidedSearch
from hetrl.agents.ledger import Ledger, is_sound
from hetrl.agents.problem import Problem
from hetrl.agents.trials import Trial
from hetrl.condition import Condition
from hetrl.device_bridge.base import MockDevice
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.space import PlanSpace
from hetrl.measurement import Failure, Measurement, MeasurementError
from hetrl.objective import Objective
from hetrl.plan import Plan
from hetrl.testing.models import random_decisions, random_graph

LOOSE = Objective(max_accuracy_drop_pct=5.0)


def space_of(seed: int, layers: int, engine: str = "mace", device: str = "d1") -> PlanSpace:
    return PlanSpace(SurrogateDevice(load_spec(device), random_graph(seed, layers), engine), LOOSE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from(["mace", "ncnn", "tflite"]), st.booleans())
def test_every_layout_is_a_legal_plan(seed: int, layers: int, engine: str, slowing: bool) -> None:
    space = space_of(seed, layers, engine)
    moves, rng = Moves(space, slowing=slowing), np.random.default_rng(seed)
    layouts = moves.random(8, rng)
    for _ in range(4):
        plans = moves.decisions(layouts)
        assert all(space.is_legal(plans[:, b]) for b in range(8))
        layouts = moves.varied(layouts, rng)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_a_plan_survives_the_way_to_a_layout_and_back(seed: int, layers: int) -> None:
    space = space_of(seed, layers)
    taken = random_decisions(space, seed, 8)
    again = Moves(space, slowing=True)
    assert (space.canonical(again.decisions(again.of(taken))) == space.canonical(taken)).all()


def test_annealing_finds_the_optimum_of_a_small_chain() -> None:
    problem = Problem.on(SurrogateDevice(load_spec("d1"), random_graph(3, 5)), Condition(), Objective())
    ranking = Ranking(_ledger(problem, 10))
    moves, rng = Moves(problem.space, slowing=False), np.random.default_rng(0)
    visited = anneal(moves, moves.random(32, rng), ranking.costs, steps=150, hot=0.1, cold=0.002, rng=rng)
    assert visited.plans.shape[1] == 32 * 151
    assert visited.costs.min() == pytest.approx(problem.optimum.latency_ms, rel=0.005)


def test_the_correction_learns_factors_per_placement_and_group() -> None:
    space = space_of(1, 6)
    rng = np.random.default_rng(0)
    batch, _ = space.schedules(random_decisions(space, 0, 400))
    predicted = Segments.of(space, batch, rng.uniform(1, 10, (400, space.groups)))
    wrong = rng.normal(0, 0.3, (1, len(space.options) * 2, space.groups))
    correction = Correction(space)
    weights = np.diff(correction.guess().weights)
    truth = Effects.of(wrong, weights, rng.uniform(0, 0.3, wrong.shape[:2]), 5.0)
    which = np.zeros(400, dtype=np.int64)
    correction.learn(predicted, predicted.ms * predicted.factors(truth, which))
    left = np.log(predicted.factors(truth, which) / predicted.factors(correction.guess(), which))
    untouched = np.log(predicted.factors(truth, which))
    assert np.sqrt(np.mean(left**2)) < 0.4 * np.sqrt(np.mean(untouched**2))


def test_what_was_measured_exactly_is_believed_at_once() -> None:
    """However often it is taken in: a placement that is three times too slow is, and others may well be."""
    space = space_of(1, 6)
    batch, _ = space.schedules(np.repeat(random_decisions(space, 0, 1), 12, axis=1))
    predicted = Segments.of(space, batch, np.ones((12, space.groups)))
    which, elsewhere = np.zeros(12, dtype=np.int64), []
    for times in (1, 4):
        correction = Correction(space)
        for _ in range(times):
            correction.learn(predicted, 3.0 * predicted.ms)
        guess = correction.guess()
        assert np.allclose(predicted.factors(guess, which), 3.0, rtol=0.02)
        unseen = np.setdiff1d(np.arange(guess.cumulative.shape[1]), predicted.placement)
        elsewhere.append(float(np.exp(guess.cumulative[0, unseen, 1] / guess.weights[unseen, 1]).mean()))
    assert 1.2 < elsewhere[0] < 3.0 and elsewhere[1] == pytest.approx(elsewhere[0], rel=0.3)


def test_draws_are_wide_where_nothing_was_measured_and_narrow_elsewhere() -> None:
    space = space_of(1, 6)
    correction = Correction(space)
    rng = np.random.default_rng(0)
    batch, _ = space.schedules(random_decisions(space, 0, 300))
    predicted = Segments.of(space, batch, np.ones((300, space.groups)))
    which = np.arange(300) % 299 + 1  # not the best guess
    before = np.log(predicted.factors(correction.draws(300, rng), which)).std()
    correction.learn(predicted, predicted.ms)
    after = np.log(predicted.factors(correction.draws(300, rng), which)).std()
    assert before > PRIOR_SD / 2 and after < before / 4
    assert np.allclose(np.log(predicted.factors(correction.guess(), 0 * which)), 0)


def test_a_wrong_surrogate_is_corrected() -> None:
    """On a device whose placements are up to half as fast or twice as slow as its surrogate says."""
    graph = hetrl.load_model("resnet18")
    surrogate = SurrogateDevice(load_spec("d1"), graph)
    device, best_ms = _unlike(surrogate, 0.3)
    problem = Problem.on(device, Condition(), Objective())
    misled_ms = device.measure(problem.optimal_plan(), Condition()).latency_ms
    assert misled_ms is not None and misled_ms > 1.02 * best_ms
    ledger = _ledger(problem, 150)
    search = GuidedSearch(ledger, "guided", 64, np.random.default_rng(0))
    nothing = np.zeros((problem.space.length, 0), dtype=np.int64)
    steps = 150
    while not ledger.exhausted:
        search.round(nothing, 4, 8, steps, 0.05, 0.002)
        steps = 30
    assert ledger.best is not None and ledger.best.cost_ms < (best_ms + misled_ms) / 2


@pytest.mark.parametrize(
    "error",
    [
        MeasurementError(Failure.UNSUPPORTED, "no splits here"),
        MeasurementError(Failure.WRONG_OUTPUT, "wrong here", 0.5),
    ],
)
def test_what_always_fails_is_left_alone(error: MeasurementError) -> None:
    surrogate = SurrogateDevice(load_spec("d1"), random_graph(5, 8))
    asked: list[bool] = []

    def refuses_splits(plan: Plan, condition: Condition) -> Measurement:
        asked.append(any(len(segment.processors) > 1 for segment in plan.segments))
        if asked[-1]:
            return Measurement.of_error(error)
        return surrogate.measure(plan, condition)

    problem = Problem.on(MockDevice(surrogate.spec, surrogate.graph, refuses_splits), Condition(), Objective())
    ledger = _ledger(problem, 120)
    asked.clear()
    search = GuidedSearch(ledger, "guided", 64, np.random.default_rng(0))
    nothing = np.zeros((problem.space.length, 0), dtype=np.int64)
    while not ledger.exhausted and search.round(nothing, 4, 8, 60, 0.05, 0.002):
        pass
    assert sum(asked[-40:]) <= 20 < len(asked)


def test_squares_of_output_errors_are_learnt_from_their_sums() -> None:
    space = space_of(1, 12, "tflite")
    rng = np.random.default_rng(0)
    truth = np.exp(rng.normal(-14, 1.5, (len(space.options), space.groups)))
    low = np.array([any("fp32" not in space.engine.processors[p].id for p in o.processors) for o in space.options])

    def errors(option: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        by_precision = np.array(
            [sorted(space.engine.processors[p].precision for p in o.processors)[0] for o in space.options]
        )
        same = np.array([np.flatnonzero(by_precision == kind)[0] for kind in by_precision])
        squares = truth[same[option], np.arange(space.groups)[:, None]]
        return np.sqrt(np.where(low[option], squares, 0.0).sum(axis=0))

    known, unseen = (space.schedules(random_decisions(space, seed, 100))[0].option for seed in (0, 1))
    model = OutputErrors(space)
    assert (model.of(unseen) == 0).all()
    model.learn(known, errors(known))
    wanted = errors(unseen)
    assert ((wanted == 0) == (model.of(unseen) == 0)).all()
    off = np.log(model.of(unseen)[wanted > 0] / wanted[wanted > 0])
    assert np.sqrt(np.mean(off**2)) < 0.15


def test_a_budget_of_output_error_is_spent_where_it_pays() -> None:
    """The fast processor rounds: all of the network there is twice as wrong as it may be."""
    surrogate = SurrogateDevice(load_spec("d1"), hetrl.load_model("resnet18"), "tflite")
    share = np.exp(np.random.default_rng(0).normal(0, 1, len(surrogate.graph.groups)))
    squares = dict(enumerate(4e-6 * share / share.sum()))
    group_of = {n: g for g in squares for n in surrogate.graph.group_node_ids(g)}
    limit = Objective(max_output_error=1e-3)

    def rounds(plan: Plan, condition: Condition) -> Measurement:
        rounded = {group_of[n] for s in plan.segments if any("fp32" not in p for p in s.processors) for n in s.nodes}
        error = float(np.sqrt(sum(squares[g] for g in rounded)))
        if error > 1e-3:
            return Measurement.of_error(MeasurementError(Failure.WRONG_OUTPUT, "too far off", error))
        return msgspec.structs.replace(surrogate.measure(plan, condition), output_error=error)

    problem = Problem.on(MockDevice(surrogate.spec, surrogate.graph, rounds, "tflite"), Condition(), limit)
    ledger = _ledger(problem, 100)
    search = GuidedSearch(ledger, "guided", 64, np.random.default_rng(0))
    nothing = np.zeros((problem.space.length, 0), dtype=np.int64)
    while not ledger.exhausted and search.round(nothing, 4, 8, 60, 0.05, 0.002):
        pass
    reference = surrogate.measure(problem.cpu_plan(), Condition()).latency_ms
    assert ledger.best is not None and reference is not None
    assert 0 < (ledger.best.trial.output_error or 0.0) <= 1e-3
    assert ledger.best.cost_ms < 0.7 * reference
    failed = next(trial for trial in ledger.trials if trial.error is not None)  # as a file of trials keeps it
    again = msgspec.json.decode(msgspec.json.encode(failed), type=Trial)
    assert again == failed and (again.output_error or 0.0) > 1e-3 and is_sound(again, problem.space)
    assert not is_sound(msgspec.structs.replace(failed, output_error=-1.0), problem.space)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"chains": 0}, "chains must be at least 1"),
        ({"chains": 2, "picks_at_most": 4}, "give chains"),
        ({"cold": 0.5}, "temperatures must fall"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoConfig(**wrong)  # type: ignore[arg-type]
    assert for_budget(1) == for_budget(10_000)


def _ledger(problem: Problem, budget: int) -> Ledger:
    ledger = Ledger(problem.space, problem.device, problem.condition, problem.objective, budget)
    ledger.measure(problem.cpu_plan(), "reference")
    ledger.reference_ms = problem.reference_ms
    return ledger


def _unlike(surrogate: SurrogateDevice, deviation: float) -> tuple[MockDevice, float]:
    """A device on which each placement of each group takes another time, and what its best plan takes."""
    real = SurrogateDevice(surrogate.spec, surrogate.graph, surrogate.engine_name)
    times = real.cost_model(condition=Condition()).tables.time_ms  # (memory, group, option, offset, processor)
    rng = np.random.default_rng(1)
    times.setflags(write=True)
    times *= np.exp(deviation * rng.standard_normal((*times.shape[:3], 1, 1)))
    best = Problem.on(real, Condition(), Objective()).optimum
    return MockDevice(real.spec, real.graph, real.measure), best.latency_ms
