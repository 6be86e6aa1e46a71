"""Layers on top of plans: fusion by mapping types, buffer reuse, low rank, reuse over frames."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrl.agents.policies import find_policy
from hetrl.api import load_model
from hetrl.compress.low_rank.policy import rank_by_share
from hetrl.condition import parse_condition
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.errors import UsageError
from hetrl.graph import OperatorGraph, OpKind
from hetrl.graph.fusion import Grouping
from hetrl.graph.reader import graph_from_model
from hetrl.graph.shapes import type_graph
from hetrl.optimize.fusion import (
    Decision,
    Dnnfusion,
    Mapping,
    combined,
    decide,
    kernels,
    mapping,
    pair_decisions,
    unfused,
)
from hetrl.optimize.low_rank import low_rank
from hetrl.optimize.memory import Arena, Buffer, allocate, lifetimes, plan_lifetimes
from hetrl.optimize.reuse import Reuse, ReuseFit, ReuseRow, by_group, steps_ms, stream_ms, study_rows
from hetrl.plan import Plan
from hetrl.zoo.builder import Blueprint, Builder
from hetrl.zoo.networks import blueprint

RULES: tuple[Grouping, ...] = (unfused, Dnnfusion(), Dnnfusion(readers_first=False))


def residual() -> Blueprint:
    """Two convolutions around an activation, a shortcut, a resize and a third convolution."""
    net = Builder("residual")
    x = net.input("data", (1, 8, 12, 12))
    y = net.activation(net.conv(x, "conv1", 8, 3), "relu1")
    y = net.batch_norm(net.conv(y, "conv2", 8, 3), "bn2")
    y = net.activation(net.add(y, x, "sum"), "relu2")
    return net.finish(net.conv(y, "conv3", 4, 3))


def grouped(network: Blueprint, grouping: Grouping) -> OperatorGraph:
    return graph_from_model(network.model, name="net", grouping=grouping)


def names(graph: OperatorGraph) -> list[set[str]]:
    return [set(graph.group_node_ids(g.index)) for g in graph.groups]


# Fusion


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (Mapping.MANY_TO_MANY, Mapping.ONE_TO_ONE, Decision.FUSE),
        (Mapping.ONE_TO_ONE, Mapping.MANY_TO_MANY, Decision.FUSE),
        (Mapping.MANY_TO_MANY, Mapping.MANY_TO_MANY, Decision.BREAK),
        (Mapping.ONE_TO_MANY, Mapping.MANY_TO_MANY, Decision.BREAK),
        (Mapping.MANY_TO_MANY, Mapping.ONE_TO_MANY, Decision.PROFILE),
        (Mapping.REORGANIZE, Mapping.SHUFFLE, Decision.FUSE),
        (Mapping.MANY_TO_MANY, Mapping.SHUFFLE, Decision.PROFILE),
    ],
)
def test_what_types_say_of_neighbours(first: Mapping, second: Mapping, expected: Decision) -> None:
    assert decide(first, second) is expected


@given(st.sampled_from(Mapping), st.sampled_from(Mapping), st.sampled_from(Mapping))
def test_combined_types_do_not_depend_on_order(a: Mapping, b: Mapping, c: Mapping) -> None:
    assert combined(a, b) is combined(b, a)
    assert combined(combined(a, b), c) is combined(a, combined(b, c))
    assert combined(a, a) is a and combined(a, Mapping.ONE_TO_ONE) is a


def test_types_of_a_network() -> None:
    operators = type_graph(blueprint("retinaface").model, {}, "retinaface", None).operators
    found = {operator.op_type: mapping(operator) for operator in operators}
    assert found["Conv"] is Mapping.MANY_TO_MANY and found["Resize"] is Mapping.ONE_TO_MANY
    assert found["Relu"] is found["Add"] is found["Concat"] is Mapping.ONE_TO_ONE
    assert sum(pair_decisions(operators).values()) == sum(
        len({o.name for o in op.activations} - {"data"}) for op in operators
    )


def test_dnnfusion_on_a_residual_block() -> None:
    """The paper's order lets activations join the next convolution; the other one leaves them with the one before."""
    tails = names(grouped(residual(), Dnnfusion(readers_first=False)))
    assert tails == [{"conv1", "relu1"}, {"conv2", "bn2", "sum", "relu2"}, {"conv3"}]
    heads = names(grouped(residual(), Dnnfusion()))
    assert heads == [{"conv1"}, {"relu1", "conv2", "bn2", "sum", "relu2"}, {"conv3"}]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("model", ["resnet18", "yolov2", "retinaface", "regnetx_1_6gf"])
def test_groupings_are_valid(model: str, rule: Grouping) -> None:
    """Every operator once, one exit each, topological, at most one heavy operator."""
    graph = grouped(blueprint(model), rule)
    assert sorted(n for g in graph.groups for n in g.nodes) == list(range(len(graph.nodes)))
    made_by = {tensor: i for i, node in enumerate(graph.nodes) for tensor in node.outputs}
    for group in graph.groups:
        inside = set(group.nodes)
        for reader, node in enumerate(graph.nodes):
            assert reader in inside or all(made_by.get(t, -1) not in inside - {group.nodes[-1]} for t in node.inputs)
        heavy = [n for n in group.nodes if graph.nodes[n].geometry.kind in (OpKind.CONV, OpKind.GEMM, OpKind.POOL)]
        assert len(heavy) <= 1
    assert all(p < g.index for g in graph.groups for p in graph.predecessors[g.index])


def test_fewer_kernels_are_faster_and_need_less_memory() -> None:
    condition, spec, took, arenas = parse_condition("cold"), load_spec("d1"), [], []
    for rule in (unfused, Dnnfusion(readers_first=False)):
        graph = grouped(blueprint("resnet18"), rule)
        device = SurrogateDevice(spec, graph, "mace")
        for policy in ("mace_cpu", "mace_gpu_image"):
            took.append(device.measure(find_policy(policy).plan(device), condition).latency_ms or math.nan)
        arenas.append(allocate(lifetimes(graph)).peak_bytes)
        assert kernels(graph) <= len(graph.groups)
    assert took[2] < took[0] and took[3] < took[1] and arenas[1] <= arenas[0]


def test_a_profile_decides_what_types_leave_open() -> None:
    net = Builder("resized")
    x = net.conv(net.input("data", (1, 4, 8, 8)), "conv", 4, 3)
    network = net.finish(net.flatten(net.activation(x, "relu"), "flat"))
    assert len(grouped(network, Dnnfusion(readers_first=False)).groups) == 2
    assert len(grouped(network, Dnnfusion(False, pays=lambda first, second: True)).groups) == 1


# Memory


@st.composite
def buffers(draw: st.DrawFn) -> tuple[Buffer, ...]:
    spans = draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 12), st.integers(0, 6)), max_size=25))
    return tuple(Buffer(str(i), size, first, first + more) for i, (size, first, more) in enumerate(spans))


def overlapping(arena: Arena) -> list[tuple[str, str]]:
    placed = list(zip(arena.buffers, arena.offsets, strict=True))
    return [
        (a.name, b.name)
        for i, (a, x) in enumerate(placed)
        for b, y in placed[i + 1 :]
        if a.meets(b) and x < y + b.size and y < x + a.size and a.size and b.size
    ]


@given(buffers(), st.sampled_from([1, 16, 64]))
def test_no_two_live_buffers_overlap(found: Sequence[Buffer], alignment: int) -> None:
    arena = allocate(found, alignment)
    assert not overlapping(arena)
    assert arena.bound_bytes <= arena.peak_bytes <= arena.sum_bytes
    assert all(offset % alignment == 0 for offset in arena.offsets)
    assert all(
        r.size >= b.size and (r.first, r.last) == (b.first, b.last) for r, b in zip(arena.buffers, found, strict=True)
    )


def test_a_gap_is_used_and_the_smallest_one() -> None:
    big, low, high = Buffer("big", 100, 0, 0), Buffer("low", 60, 1, 1), Buffer("high", 40, 1, 1)
    arena = allocate([big, low, high], 1)
    assert arena.peak_bytes == 100 == arena.bound_bytes and arena.sum_bytes == 200


def test_lifetimes_of_a_residual_block() -> None:
    graph = grouped(residual(), Dnnfusion(readers_first=False))
    found = {b.name: (b.first, b.last) for b in lifetimes(graph)}
    assert found == {"data": (0, 1), "relu1": (0, 1), "relu2": (1, 2), "conv3": (2, 3)}
    with pytest.raises(UsageError):
        allocate(lifetimes(graph), 0)


def test_a_plan_has_the_lifetimes_of_its_order() -> None:
    graph, plan = split_plan("resnet18")
    assert plan_lifetimes(plan, graph) == lifetimes(graph)


# Low rank


def rank_of(out: int, channels: int, window: int, keep: float) -> int:
    return rank_by_share(keep, out * channels * window, channels * window + out)


def test_low_rank_weights_and_work_follow_from_shapes() -> None:
    network = residual()
    whole, small = (graph_from_model(n.model, name="n") for n in (network, low_rank(network, 0.5)))
    rank = rank_of(8, 8, 9, 0.5)
    pair, kernel = rank * (8 * 9 + 8), 8 * 8 * 9
    assert pair <= 0.5 * kernel < (rank + 1) * (8 * 9 + 8)
    last = rank_of(4, 8, 9, 0.5) * (8 * 9 + 4)
    assert small.parameters - whole.parameters == pair - kernel + last - 4 * 8 * 9
    assert small.macs < whole.macs and len(small.nodes) == len(whole.nodes) + 2
    assert small.outputs == whole.outputs
    assert {t.name: t.shape for t in whole.tensors}.items() <= {t.name: t.shape for t in small.tensors}.items()


@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from([9, 25, 49]), st.floats(0.01, 0.99))
def test_a_rank_is_positive_and_no_larger_than_asked(out: int, channels: int, window: int, keep: float) -> None:
    rank = rank_of(out, channels, window, keep)
    assert rank == 1 or rank * (channels * window + out) <= keep * out * channels * window


@pytest.mark.parametrize("keep", [0.0, 1.0, -1.0, math.nan])
def test_impossible_shares_of_weights(keep: float) -> None:
    with pytest.raises(UsageError):
        low_rank(residual(), keep)


# Reuse


def split_plan(model: str) -> tuple[OperatorGraph, Plan]:
    graph = load_model(model)
    return graph, find_policy("codl_image").plan(SurrogateDevice(load_spec("d1"), graph, "mace"))


def test_cutting_a_plan_into_steps_costs_nothing() -> None:
    graph, plan = split_plan("resnet18")
    device, condition = SurrogateDevice(load_spec("d1"), graph, "mace"), parse_condition("cold")
    whole, cut = device.measure(plan, condition), device.measure(by_group(plan, graph), condition)
    assert cut.latency_ms == pytest.approx(whole.latency_ms)
    assert sum(steps_ms(cut.segments)) == pytest.approx(cut.latency_ms)
    assert len(cut.segments) >= len(whole.segments)


steps = st.lists(st.floats(0, 50), min_size=1, max_size=12)


@given(steps, st.integers(0, 5), st.integers(0, 12))
def test_more_reuse_never_costs_latency(found: list[float], frames: int, layers: int) -> None:
    now = stream_ms(found, Reuse(frames, layers))
    assert stream_ms(found, Reuse(0, layers)) == stream_ms(found, Reuse(frames, 0)) == sum(found)
    assert -1e-9 <= stream_ms(found, Reuse(frames + 1, layers)) <= now + 1e-9
    assert stream_ms(found, Reuse(frames, layers + 1)) <= now + 1e-9


def test_the_curve_meets_the_row_it_is_fitted_to_and_foretells_the_other() -> None:
    plain, first, second = study_rows()
    fit = ReuseFit.to(plain, first)
    assert fit.latency_ms(first.reuse) == pytest.approx(first.latency_ms)
    assert fit.vmaf(first.reuse) == pytest.approx(first.vmaf)
    assert fit.latency_ms(second.reuse) == pytest.approx(second.latency_ms, rel=0.02)
    assert fit.vmaf(second.reuse) == pytest.approx(second.vmaf, rel=0.05)
    assert fit.latency_ms(Reuse(50, 50)) == 0 == fit.vmaf(Reuse(50, 50))


def test_reuse_that_makes_no_sense() -> None:
    with pytest.raises(UsageError):
        Reuse(-1, 0)
    row = ReuseRow(Reuse(1, 1), 9.0, 40.0)
    with pytest.raises(UsageError):
        ReuseFit.to(row, row)
