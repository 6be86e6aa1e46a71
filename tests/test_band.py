"""Band's units, their profile, its dynamic program, and the plans of its schedulers on an idle phone."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrl.agents.policies import find_policy
from hetrl.agents.policies.band_rule import Subgraph, fastest_worker, fixed_path, largest, on_fixed, shortest
from hetrl.agents.policies.unit_subgraphs import Floats, grown, profile, unit_subgraphs
from hetrl.condition import parse_condition
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.graph import OperatorGraph
from hetrl.testing.models import UNSUPPORTED, random_graph
from hetrl.zoo.builder import Builder
from hetrl.zoo.resolve import resolve_model
from tests.surrogate_help import COLD, D1, chain_graph, graph_of, latency_ms, measured

CPU, GPU = "cpu/mace/fp32", "gpu/mace/fp32"
SHORTEST = ("band_sel", "band_heft", "band_heft_reserved", "band_lst")
inf = float("inf")


def interrupted(before: int, after: int, *, size: int = 112, channels: int = 64) -> OperatorGraph:
    """3x3 convolutions, then one with an activation that no GPU takes (one group), then more of the first kind."""
    net = Builder("interrupted")
    x = net.input("x", (1, channels, size, size))
    for number in range(before + 1 + after):
        x = net.conv(x, f"l{number}", channels, 3)
        if number == before:
            x = net.activation(x, "refused", UNSUPPORTED)
    return graph_of(net.finish(x))


def test_regions_grow_from_the_frontier_as_in_bands_own_drawing() -> None:
    #      Op1 --- Op2 --- Op3        the drawing in model_analyzer.cc, numbered in topological order;
    #    /                     \      2 and 4 fall back
    # Op0 - Op4 --- Op5 -- Op6 - Op7
    predecessors = [(), (0,), (1,), (2,), (0,), (4,), (5,), (3, 6)]
    labels = [k not in (2, 4) for k in range(8)]
    assert grown(predecessors, labels, True) == [(0, 1), (2, 4), (3, 5, 6, 7)]


def test_a_region_may_begin_with_what_the_worker_does_not_take() -> None:
    assert grown([(), (0,), (1,)], [False, True, True], True) == [(0,), (1, 2)]
    assert grown([], [], True) == []


def test_an_accelerators_regions_below_seven_operators_are_dropped() -> None:
    graph = interrupted(6, 7)
    takes = np.array([[True, UNSUPPORTED not in {graph.nodes[n].op_type for n in g.nodes}] for g in graph.groups])
    units = unit_subgraphs(graph, takes, 0)
    assert units.masks == (0b01, 0b11)  # six convolutions and the refused group, then seven convolutions
    assert [len(unit) for unit in units.members] == [7, 7]
    assert units.order == tuple(range(14)) and units.bounds == (0, 7, 14)
    assert unit_subgraphs(graph, takes, 0, min_nodes=6).masks == (0b11, 0b01, 0b11)
    assert unit_subgraphs(graph, takes, 0, min_nodes=8).masks == (0b01,)


def test_operators_are_counted_in_nodes_not_in_groups() -> None:
    net = Builder("fused")
    x = net.input("x", (1, 8, 32, 32))
    for number in range(4):
        x = net.activation(net.conv(x, f"l{number}", 8, 3), f"r{number}")
    graph = graph_of(net.finish(net.activation(net.conv(x, "l4", 8, 3), "refused", UNSUPPORTED)))
    assert len(graph.groups) == 5
    assert profile(SurrogateDevice(D1, graph)).units.masks == (0b11, 0b01)  # 8 nodes in 4 groups


@given(st.integers(0, 10**6))
def test_units_cover_a_model_once_in_an_order_that_can_be_run(seed: int) -> None:
    graph = random_graph(seed % 60, 3 + seed % 17)
    takes = np.random.default_rng(seed).random((len(graph.groups), 3)) < 0.7
    units = unit_subgraphs(graph, takes, 0, min_nodes=seed % 4)
    assert sorted(units.order) == list(range(len(graph.groups)))
    place = {group: i for i, group in enumerate(units.order)}
    assert all(place[p] < place[g] for g in place for p in graph.predecessors[g])
    for mask, unit in zip(units.masks, units.members, strict=True):
        assert mask & 1  # the CPU takes everything
        assert all(takes[group, worker] for group in unit for worker in (1, 2) if mask >> worker & 1)
        assert graph.is_convex(set(unit))


def brute_force(expected: Floats, start: int, waiting: list[float]) -> float:
    """The soonest end over every cut into runs and every choice of workers."""
    count, _, workers = expected.shape
    best = inf
    for cuts in product((False, True), repeat=count - start - 1):
        ends = [i + start for i, cut in enumerate(cuts) if cut] + [count - 1]
        runs = [(a + 1, b) for a, b in pairwise([start - 1, *ends])]
        for chosen in product(range(workers), repeat=len(runs)):
            now = 0.0
            for (first, last), worker in zip(runs, chosen, strict=True):
                now = max(now, waiting[worker]) + float(expected[first, last, worker])
            best = min(best, now)
    return best


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 10**6))
def test_the_dynamic_program_equals_brute_force(count: int, workers: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    expected = draw.uniform(1, 20, (count, count, workers))
    taken = draw.random((count, workers)) < 0.7
    taken[:, 0] = True
    for first, last, worker in np.ndindex(expected.shape):
        if last < first or not taken[first : last + 1, worker].all():
            expected[first, last, worker] = inf
    start = int(draw.integers(count))
    waiting = [float(w) for w in draw.choice([0.0, 3.0, 30.0], workers)]
    path, latency = shortest(expected, start, waiting)
    assert latency == pytest.approx(brute_force(expected, start, waiting), abs=1e-9)
    now, unit = 0.0, start
    for step in path:
        assert step.first == unit
        now = max(now, waiting[step.worker]) + float(expected[step.first, step.last, step.worker])
        unit = step.last + 1
    assert unit == count and now == pytest.approx(latency, abs=1e-9)


def by_hand() -> Floats:
    """Two units, two workers: worker 1 is faster in each, and does not take the second one of three."""
    table = np.full((3, 3, 2), inf)
    table[0, 0], table[1, 1], table[2, 2] = (10, 4), (5, inf), (10, 4)
    table[0, 1, 0], table[1, 2, 0], table[0, 2, 0] = 14, 14, 24
    return table


def test_the_dynamic_program_by_hand() -> None:
    table = by_hand()
    assert shortest(table) == ((Subgraph(0, 0, 1), Subgraph(1, 1, 0), Subgraph(2, 2, 1)), 13.0)
    # Worker 1 is busy for 7 ms: waiting for it (7 + 4 + 5 + 4 = 20) loses to starting on worker 0 (14, then 4).
    assert shortest(table, 0, [0.0, 7.0]) == ((Subgraph(0, 1, 0), Subgraph(2, 2, 1)), 18.0)
    assert shortest(table, 2, [0.0, 7.0]) == ((Subgraph(2, 2, 0),), 10.0)
    assert largest(table, 0, 0) == Subgraph(0, 2, 0)
    assert largest(table, 0, 1) == Subgraph(0, 0, 1)
    assert largest(table, 1, 1) is None
    assert on_fixed(table, 1, 1, cpu=0) == Subgraph(1, 1, 0)


@pytest.mark.parametrize("graph", [chain_graph(4), resolve_model("resnet18")], ids=["chain", "resnet18"])
@pytest.mark.parametrize("condition", ["cold", "sigma2,competitors=2", "sigma4"])
def test_the_profile_of_a_whole_model_is_its_latency(graph: OperatorGraph, condition: str) -> None:
    device = SurrogateDevice(D1, graph)
    state = parse_condition(condition)
    known = profile(device, state, min_nodes=1)
    plans = [find_policy(name).plan(device) for name in ("mace_cpu", "mace_gpu_image")]
    for worker, plan in enumerate(plans):
        whole = known.expected_ms[0, -1, worker]
        assert whole == pytest.approx(device.measure(plan, state).latency_ms)


def test_subgraphs_of_a_chain_add_up_to_the_plans_latency() -> None:
    device = SurrogateDevice(D1, interrupted(7, 8))
    known = profile(device)
    path, expected = shortest(known.expected_ms)
    plan = find_policy("band_heft").plan(device)
    assert [s.processors for s in plan.segments] == [(GPU,), (CPU,), (GPU,)]
    assert [s.worker for s in path] == [1, 0, 1]
    assert latency_ms(device, plan) == pytest.approx(expected)
    assert not measured(device, plan).fallbacks


def test_an_interruption_makes_subgraphs_too_short_for_the_gpu() -> None:
    device = SurrogateDevice(D1, interrupted(6, 6))
    for name in ("band_fixed", "band_rr", *SHORTEST):
        assert find_policy(name).plan(device).processors == (CPU,)


def test_schedulers_that_plan_agree_on_an_idle_phone_and_beat_those_that_do_not() -> None:
    device = SurrogateDevice(D1, interrupted(7, 8))
    plans = {name: find_policy(name).plan(device) for name in ("band_fixed", "band_rr", *SHORTEST)}
    assert len({plans[name].key for name in SHORTEST}) == 1
    best = latency_ms(device, plans["band_heft"])
    assert plans["band_rr"].processors == (CPU,)  # the first of the idle workers, which takes everything
    assert best < latency_ms(device, plans["band_rr"])
    assert best <= latency_ms(device, plans["band_fixed"])


def test_fixed_takes_the_fastest_processor_by_its_profile() -> None:
    for model, fastest in (("vgg16", "dsp"), ("regnetx_4gf", "gpu")):  # the DSP does not take grouped convolutions
        device = SurrogateDevice(load_spec("d1"), resolve_model(model), "tflite")
        known = profile(device)
        worker = fastest_worker(known)
        assert device.engine.processors[worker].unit == fastest
        spent = [sum(known.expected_ms[s.first, s.last, s.worker] for s in fixed_path(known, w)) for w in range(3)]
        assert spent[worker] == min(spent)
        (segment,) = find_policy("band_fixed").plan(device).segments
        assert segment.processors == (device.engine.processors[worker].id,)


def test_no_plan_of_bands_is_shorter_by_its_profile_than_the_dynamic_programs() -> None:
    device = SurrogateDevice(load_spec("d1"), resolve_model("regnetx_1_6gf"), "tflite")
    known = profile(device)
    assert len(known.units.masks) > 20
    latency = shortest(known.expected_ms)[1]
    for worker in range(3):
        assert latency <= sum(known.expected_ms[s.first, s.last, s.worker] for s in fixed_path(known, worker)) + 1e-9


def test_where_branches_interleave_the_plan_follows_the_graphs_order() -> None:
    apart = 0
    for seed in range(30):
        device = SurrogateDevice(D1, random_graph(seed, 12))
        known = profile(device)
        apart += known.units.order != tuple(range(len(device.graph.groups)))
        path = shortest(known.expected_ms)[0]
        plan = find_policy("band_sel").plan(device)
        assert measured(device, plan, COLD).latency_ms and not measured(device, plan).fallbacks
        placed = {node: segment.processors[0] for segment in plan.segments for node in segment.nodes}
        for step in path:
            for group in (g for unit in known.units.members[step.first : step.last + 1] for g in unit):
                name = device.engine.processors[step.worker].id
                assert {placed[node] for node in device.graph.group_node_ids(group)} == {name}
        nodes = [node for segment in plan.segments for node in segment.nodes]
        assert nodes == [node for g in range(len(device.graph.groups)) for node in device.graph.group_node_ids(g)]
    assert apart  # some of these models make Band's order another one
