"""Branches side by side: the solver against every way to place and split small models' groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetrl.agents import makespan
from hetrl.agents.makespan import solve_makespan
from hetrl.condition import parse_condition
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule, batch_of
from hetrl.plan import Memory
from hetrl.testing.models import random_graph
from hetrl.zoo.builder import Builder
from tests.surrogate_help import D1, chain_graph, graph_of, with_cost

# Launches that cost what these small models take would leave nothing to share.
BALANCED = with_cost(0, {"ms_per_gmac": 60.0}, with_cost(1, {"ms_per_gmac": 60.0}))


def every_placement_ms(model: CostModel, memory: Memory, splits: tuple[int, ...] = ()) -> float:
    """The best of all placements of each group for itself, overlapping.

    :param splits: split options to try too.
    """
    n, processors = len(model.tables.workload.items), len(model.tables.engine.processors)
    possible = model.tables.possible
    choices = [[o for o in (*range(processors), *splits) if possible[k, o]] for k in range(n)]
    every = itertools.product(*choices)
    best = np.inf
    while some := list(itertools.islice(every, 4096)):
        schedules = [
            Schedule(tuple(Placed(k, k, o, memory) for k, o in enumerate(chosen)), overlap=True) for chosen in some
        ]
        best = min(best, float(model.evaluate(batch_of(schedules, n, processors), None).latency_ms.min()))
    return best


def split_options(model: CostModel) -> tuple[int, ...]:
    """A coarse grid of both axes."""
    return tuple(
        o for o, option in enumerate(model.tables.options) if option.split and option.shares_pct[0] in (30, 60)
    )


def with_options(model: CostModel, options: tuple[int, ...]) -> np.ndarray:
    """(n, O) what is possible where only those options are."""
    possible: np.ndarray = model.tables.possible & np.isin(np.arange(len(model.tables.options)), options)
    return possible


def branchy(seeds: range, most: int = 8) -> list[CostModel]:
    """Models with branches and at most so many groups."""
    found = []
    for seed in seeds:
        graph = random_graph(seed, 7 if most <= 8 else most, size=64)
        if len(graph.groups) > most:
            continue
        model = SurrogateDevice(BALANCED, graph).cost_model()
        if model.tables.workload.independent.any():
            found.append(model)
    return found


def test_the_solver_finds_the_best_placement_and_proves_it() -> None:
    tried, gained = 0, 0
    for model in branchy(range(60)):
        n, processors = len(model.tables.workload.items), len(model.tables.engine.processors)
        best = every_placement_ms(model, Memory.IMAGE)
        whole = with_options(model, tuple(range(processors)))
        found = solve_makespan(model, Memory.IMAGE, whole, 1.5 * best)
        assert found.segments is not None
        schedules = [Schedule(found.segments, overlap=True), Schedule(found.segments)]
        side, serial = model.evaluate(batch_of(schedules, n, processors), None).latency_ms
        assert side == pytest.approx(best, rel=1e-9)
        assert found.bound_ms == pytest.approx(best, rel=1e-9)
        tried, gained = tried + 1, gained + (side < 0.99 * serial)
    assert tried >= 10 and gained >= 2


def test_splits_of_single_groups_are_among_the_placements() -> None:
    tried, splitting, mixed = 0, 0, 0
    for model, memory in zip(branchy(range(100, 300), 6), itertools.cycle(Memory), strict=False):
        n, processors = len(model.tables.workload.items), len(model.tables.engine.processors)
        splits = split_options(model)
        best = every_placement_ms(model, memory, splits)
        found = solve_makespan(model, memory, with_options(model, (*range(processors), *splits)), 1.5 * best)
        assert found.segments is not None
        side = model.evaluate(batch_of([Schedule(found.segments, overlap=True)], n, processors), None).latency_ms[0]
        assert side == pytest.approx(best, rel=1e-9)
        assert found.bound_ms == pytest.approx(best, rel=1e-9)
        split = [model.split[placed.option] for placed in found.segments]
        whole = {placed.option for placed, s in zip(found.segments, split, strict=True) if not s}
        tried, splitting, mixed = tried + 1, splitting + any(split), mixed + (any(split) and len(whole) > 1)
    assert tried >= 20 and splitting >= 5 and mixed >= 1


def test_few_labels_still_give_a_lower_bound() -> None:
    """What is cut off for time's sake is in the bound."""
    cut_off = 0
    for model in branchy(range(300, 340), 12):
        possible = model.tables.possible
        best = solve_makespan(model, Memory.IMAGE, possible, 1e6)
        assert best.segments is not None
        n, processors = len(possible), len(model.tables.engine.processors)
        true_ms = model.evaluate(batch_of([Schedule(best.segments, overlap=True)], n, processors), None).latency_ms[0]
        assert best.bound_ms == pytest.approx(true_ms, rel=1e-9)
        for drafts in (1, 2, 4):
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(makespan, "DRAFTS", drafts)
                few = solve_makespan(model, Memory.IMAGE, possible, 1e6, effort=1)
            assert few.bound_ms <= true_ms * (1 + 1e-9)
            cut_off += few.bound_ms < true_ms * (1 - 1e-9)
            if few.segments is not None:
                schedules = [Schedule(few.segments, overlap=True)]
                assert model.evaluate(batch_of(schedules, n, processors), None).latency_ms[0] >= true_ms * (1 - 1e-9)
    assert cut_off


@given(st.integers(0, 10**6), st.sampled_from(["d1", "d3", "d5", "d8"]), st.sampled_from(["cold", "sigma2"]))
@settings(max_examples=30, deadline=None)
def test_nothing_side_by_side_is_below_the_bound(seed: int, device: str, condition: str) -> None:
    """Random placements with splits, and those next to the best ones, on devices whose processors are about alike."""
    draw = np.random.default_rng(seed)
    spec = with_cost(
        1, dict.fromkeys(("ms_per_gmac", "ms_per_mb", "launch_ms"), draw.uniform(0.1, 2)), load_spec(device)
    )
    planner = SurrogateDevice(spec, random_graph(seed, 4 + seed % 8, size=(20, 96)[seed % 2]))
    model = planner.cost_model(condition=parse_condition(condition))
    possible, memory = model.tables.possible, list(Memory)[seed % 2]
    n, processors = len(possible), len(model.tables.engine.processors)
    found = solve_makespan(model, memory, possible, 1e9)
    assert found.segments is not None
    own = np.array([placed.option for placed in found.segments])[:, None]
    drawn = (draw.random((*possible.shape, 400)) * possible[:, :, None]).argmax(axis=1)
    drawn = np.hstack([drawn, np.where(draw.random((n, 400)) < 1.5 / n, drawn, own), own])
    schedules = [
        Schedule(tuple(Placed(k, k, int(o), memory) for k, o in enumerate(column)), overlap=True) for column in drawn.T
    ]
    latencies = model.evaluate(batch_of(schedules, n, processors), None).latency_ms
    assert latencies.min() >= found.bound_ms * (1 - 1e-9)
    assert latencies[-1] <= latencies.min() * (1 + 1e-9) or found.bound_ms < latencies[-1] * (1 - 1e-9)


def test_nothing_is_found_below_the_best() -> None:
    for model in branchy(range(60, 80)):
        best = every_placement_ms(model, Memory.BUFFER)
        limit = best * (1 - 1e-6)
        whole = with_options(model, tuple(range(len(model.tables.engine.processors))))
        found = solve_makespan(model, Memory.BUFFER, whole, limit)
        assert found.segments is None and found.bound_ms == limit


def test_chains_have_no_branches() -> None:
    assert not SurrogateDevice(D1, chain_graph(5)).cost_model().tables.workload.independent.any()
    net = Builder("fork")
    stem = net.conv(net.input("x", (1, 8, 16, 16)), "stem", 8, 3)
    fork = graph_of(net.finish(net.concat([net.conv(stem, "a", 8, 3), net.conv(stem, "b", 8, 3)], "join")))
    assert SurrogateDevice(D1, fork).cost_model().tables.workload.independent.any()


def test_the_same_problem_has_the_same_answer() -> None:
    model = branchy(range(60))[0]
    first, second = (solve_makespan(model, Memory.IMAGE, model.tables.possible, 1e4) for _ in range(2))
    assert first == second
