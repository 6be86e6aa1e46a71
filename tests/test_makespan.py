"""Branches side by side: the solver against every placement of small models."""

from __future__ import annotations

import itertools
import math

import msgspec
import pytest

from hetrl.agents.makespan import has_branches, solve_makespan
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import DeviceSpec
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule, batch_of
from hetrl.graph import OperatorGraph
from hetrl.plan import Memory
from hetrl.testing.models import random_graph
from hetrl.zoo.builder import Builder
from tests.surrogate_help import D1, chain_graph, graph_of, with_cost

pytest.importorskip("ortools", reason="the extra `exact` is not installed")


def without_contention(spec: DeviceSpec) -> DeviceSpec:
    engine = spec.engine()
    free = Quantity(0.0, Source.ASSUMED)
    links = tuple(msgspec.structs.replace(link, contention=free) for link in engine.links)
    return msgspec.structs.replace(spec, engines={spec.default_engine: msgspec.structs.replace(engine, links=links)})


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


def branchy(seeds: range) -> list[tuple[OperatorGraph, CostModel]]:
    found = []
    for seed in seeds:
        graph = random_graph(seed, 7, size=64)
        if len(graph.groups) > 8:
            continue
        model = SurrogateDevice(BALANCED, graph).cost_model()
        if has_branches(model.tables.workload):
            found.append((graph, model))
    return found


def test_the_solver_finds_the_best_placement_and_its_bound_holds() -> None:
    tried, gained = 0, 0
    for graph, model in branchy(range(60)):
        exact = SurrogateDevice(without_contention(BALANCED), graph).cost_model()
        best = every_placement_ms(exact, Memory.IMAGE)
        found = solve_makespan(exact, Memory.IMAGE, exact.tables.possible, math.nextafter(best * 1.5, math.inf))
        assert found.segments is not None
        n, processors = len(graph.groups), len(exact.tables.engine.processors)
        schedule = Schedule(found.segments, overlap=True)
        answer = float(exact.evaluate(batch_of([schedule], n, processors), None).latency_ms[0])
        assert answer == pytest.approx(best, rel=1e-5)
        assert best * (1 - 1e-5) <= found.bound_ms <= best * (1 + 1e-9)
        # With contention, which the solver leaves out, its bound still is one.
        crowded = solve_makespan(model, Memory.IMAGE, model.tables.possible, 1.5 * best)
        assert crowded.bound_ms <= every_placement_ms(model, Memory.IMAGE) * (1 + 1e-9)
        alone = model.evaluate(batch_of([Schedule(found.segments)], n, processors), None).latency_ms[
            0
        ]  # the same placements, one after the other
        tried, gained = tried + 1, gained + (answer < 0.99 * alone)
    assert tried >= 10 and gained >= 2


def test_nothing_is_found_below_the_best() -> None:
    for graph, _ in branchy(range(60, 80)):
        model = SurrogateDevice(without_contention(BALANCED), graph).cost_model()
        best = every_placement_ms(model, Memory.BUFFER)
        limit = best * (1 - 1e-4)
        found = solve_makespan(model, Memory.BUFFER, model.tables.possible, limit)
        assert found.segments is None and found.bound_ms == limit


def test_chains_have_no_branches() -> None:
    assert not has_branches(SurrogateDevice(D1, chain_graph(5)).cost_model().tables.workload)
    net = Builder("fork")
    stem = net.conv(net.input("x", (1, 8, 16, 16)), "stem", 8, 3)
    fork = graph_of(net.finish(net.concat([net.conv(stem, "a", 8, 3), net.conv(stem, "b", 8, 3)], "join")))
    assert has_branches(SurrogateDevice(D1, fork).cost_model().tables.workload)


def test_the_same_problem_has_the_same_answer() -> None:
    graph, model = branchy(range(60))[0]
    first, second = (solve_makespan(model, Memory.IMAGE, model.tables.possible, 1e4) for _ in range(2))
    assert first == second and len(graph.groups) == len(model.tables.workload.items)
