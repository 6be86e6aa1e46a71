"""Branches side by side: the solver against every placement of small models."""

from __future__ import annotations

import itertools

import pytest

from hetrl.agents.makespan import solve_makespan
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule, batch_of
from hetrl.plan import Memory
from hetrl.testing.models import random_graph
from hetrl.zoo.builder import Builder
from tests.surrogate_help import D1, chain_graph, graph_of, with_cost

pytest.importorskip("ortools", reason="the extra `exact` is not installed")


# Launches that cost what these small models take would leave nothing to share.
BALANCED = with_cost(0, {"ms_per_gmac": 60.0}, with_cost(1, {"ms_per_gmac": 60.0}))


def every_placement_ms(model: CostModel, memory: Memory) -> float:
    """The best of all placements of whole groups, overlapping."""
    n, processors = len(model.tables.workload.items), len(model.tables.engine.processors)
    possible = model.tables.possible
    choices = [[p for p in range(processors) if possible[k, p]] for k in range(n)]
    schedules = [
        Schedule(tuple(Placed(k, k, p, memory) for k, p in enumerate(chosen)), overlap=True)
        for chosen in itertools.product(*choices)
    ]
    return float(model.evaluate(batch_of(schedules, n, processors), None).latency_ms.min())


def branchy(seeds: range) -> list[CostModel]:
    found = []
    for seed in seeds:
        graph = random_graph(seed, 7, size=64)
        if len(graph.groups) > 8:
            continue
        model = SurrogateDevice(BALANCED, graph).cost_model()
        if model.tables.workload.independent.any():
            found.append(model)
    return found


def test_the_solver_finds_the_best_placement_and_proves_it() -> None:
    tried, gained = 0, 0
    for model in branchy(range(60)):
        best = every_placement_ms(model, Memory.IMAGE)
        found = solve_makespan(model, Memory.IMAGE, model.tables.possible, 1.5 * best)
        assert found.segments is not None
        n, processors = len(model.tables.workload.items), len(model.tables.engine.processors)
        schedules = [Schedule(found.segments, overlap=True), Schedule(found.segments)]
        side, serial = model.evaluate(batch_of(schedules, n, processors), None).latency_ms
        assert side == pytest.approx(best, rel=1e-5)
        assert best * (1 - 1e-5) <= found.bound_ms <= best * (1 + 1e-9)
        tried, gained = tried + 1, gained + (side < 0.99 * serial)
    assert tried >= 10 and gained >= 2


def test_nothing_is_found_below_the_best() -> None:
    for model in branchy(range(60, 80)):
        best = every_placement_ms(model, Memory.BUFFER)
        limit = best * (1 - 1e-4)
        found = solve_makespan(model, Memory.BUFFER, model.tables.possible, limit)
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
