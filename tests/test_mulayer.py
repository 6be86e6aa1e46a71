"""muLayer at forks: where whole branches go to a processor each, and which processors it takes."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hetrl
from hetrl.accuracy import INT8_DROP_PCT
from hetrl.agents.policies import find_policy
from hetrl.agents.policies.forks import INPUT, Fork, forks
from hetrl.agents.policies.mulayer_rule import operations, predicted_ms
from hetrl.device_bridge.spec import DeviceSpec, load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.workload import workload_of
from hetrl.graph import OperatorGraph
from hetrl.objective import Objective
from hetrl.plan import Axis, Plan
from hetrl.testing.models import UNSUPPORTED, random_graph
from hetrl.zoo.builder import Builder
from hetrl.zoo.catalog import catalog
from hetrl.zoo.resolve import resolve_model
from tests.surrogate_help import D1, chain_graph, graph_of, latency_ms, measured, with_cost

CPU, GPU = "cpu/mace/fp32", "gpu/mace/fp32"


def fork_graph(*channels: int, refused: int | None = None) -> OperatorGraph:
    """A stem, then branches of one 3x3 convolution of 64 channels to so many each, then a concatenation.

    :param refused: the branch with an operator that the GPU does not take.
    """
    net = Builder("fork")
    stem = net.conv(net.input("x", (1, 16, 56, 56)), "stem", 64, 3)
    branches = [net.conv(stem, f"b{i}", count, 3) for i, count in enumerate(channels)]
    if refused is not None:
        branches[refused] = net.activation(branches[refused], "refused", UNSUPPORTED)
    return graph_of(net.finish(net.concat(branches, "join")))


def with_ratio(graph: OperatorGraph, cpu_per_gpu: float) -> SurrogateDevice:
    """d1 with a GPU on which the model takes the CPU's time divided by a number."""
    predicted = predicted_ms(SurrogateDevice(D1, graph).cost_model().tables)
    gpu_ms, cpu_ms = predicted[np.isfinite(predicted[:, 0])].sum(axis=0)
    by = float(cpu_ms / cpu_per_gpu / gpu_ms)
    return SurrogateDevice(with_cost(1, dict.fromkeys(("ms_per_gmac", "ms_per_mb", "launch_ms"), by)), graph)


def where(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {node: segment.processors for segment in plan.segments for node in segment.nodes}


def mulayer(device: SurrogateDevice) -> Plan:
    return find_policy("mulayer").plan(device)


def test_branches_go_whole_to_the_processors_that_end_them_soonest() -> None:
    """A CPU that takes 1.5 times the GPU's time: x = 0.6, so halves, and splitting 5 units of work takes 3.75.

    Whole branches of 3 and 2 units: 3 on the GPU, 2 * 1.5 = 3 on the CPU.
    """
    device = with_ratio(fork_graph(96, 64), 1.5)
    plan = mulayer(device)
    assert where(plan)["b0"] == (GPU,) and where(plan)["b1"] == (CPU,)
    (stem,) = (s for s in plan.segments if s.nodes[0] == "stem")
    assert [p.share_pct for p in stem.parts] == [50, 50] and stem.axis is Axis.OUTPUT_CHANNELS
    assert plan.overlap
    serial = msgspec.structs.replace(plan, overlap=False)
    assert latency_ms(device, plan) < latency_ms(device, serial)


def test_three_branches_by_hand() -> None:
    """CPU 2 times the GPU's: three quarters, and splitting 4 + 3 + 2 takes 6.75; 4 + 2 beside 2 * 3 takes 6."""
    plan = mulayer(with_ratio(fork_graph(128, 96, 64), 2.0))
    assert [where(plan)[f"b{i}"] for i in range(3)] == [(GPU,), (CPU,), (GPU,)]


def test_splitting_stays_where_the_predictor_finds_it_faster() -> None:
    """CPU 3 times the GPU's: three quarters, so that splitting 2 units takes 1.5; branches take 3, or 2 on the GPU."""
    plan = mulayer(with_ratio(fork_graph(64, 64), 3.0))
    assert not plan.overlap
    assert where(plan)["b0"] == where(plan)["b1"] == (GPU, CPU)


def test_a_branch_that_the_gpu_does_not_take_stays_on_the_cpu() -> None:
    device = with_ratio(fork_graph(64, 64, refused=0), 1.5)
    plan = mulayer(device)
    assert where(plan)["b0"] == (CPU,) and where(plan)["b1"] == (GPU,)
    assert not measured(device, plan).fallbacks


def placed_ms(work: list[float], chosen: tuple[bool, ...], cpu_per_gpu: float) -> float:
    on_gpu = sum(w for w, there in zip(work, chosen, strict=True) if there)
    return max(on_gpu, (sum(work) - on_gpu) * cpu_per_gpu)


@given(
    st.lists(st.integers(4, 40), min_size=2, max_size=5),
    st.sampled_from([0.2, 0.4, 0.5, 0.8, 1.0, 1.3, 1.5, 2.0, 2.5, 3.0, 4.0, 6.5]),
)
@settings(max_examples=25, deadline=None)
def test_a_fork_is_placed_as_is_predicted_best(quarters: list[int], cpu_per_gpu: float) -> None:
    plan = mulayer(with_ratio(fork_graph(*(4 * q for q in quarters)), cpu_per_gpu))
    work = [float(q) for q in quarters]
    share = 25 * round(4 * cpu_per_gpu / (1 + cpu_per_gpu)) / 100
    split_ms = sum(work) * max(share, (1 - share) * cpu_per_gpu)
    best_ms = min(placed_ms(work, way, cpu_per_gpu) for way in product((True, False), repeat=len(work)))
    there = [where(plan)[f"b{i}"] for i in range(len(work))]
    if (GPU, CPU) in there:
        assert set(there) == {(GPU, CPU)} and split_ms <= best_ms * (1 + 1e-6)
    else:
        ours_ms = placed_ms(work, tuple(p == (GPU,) for p in there), cpu_per_gpu)
        assert ours_ms == pytest.approx(best_ms, rel=1e-6) and best_ms <= split_ms * (1 + 1e-6)
        assert plan.overlap == (len(set(there)) > 1)


def forks_of(graph: OperatorGraph) -> list[Fork]:
    return forks(workload_of(graph))


def test_chains_and_residuals_have_no_forks() -> None:
    assert forks_of(chain_graph(6)) == []
    net = Builder("residual")
    x = net.conv(net.input("x", (1, 8, 16, 16)), "stem", 8, 3)
    inner = net.activation(net.conv(x, "a", 8, 3), "a.relu")
    graph = graph_of(net.finish(net.add(net.conv(inner, "b", 8, 3), x, "sum")))
    assert forks_of(graph) == []
    assert not mulayer(SurrogateDevice(D1, graph)).overlap


def nested() -> OperatorGraph:
    """One branch is a convolution, the other forks again; a third path leaves the inner fork for an output."""
    net = Builder("nested")
    stem = net.conv(net.input("x", (1, 16, 28, 28)), "stem", 32, 3)
    head = net.conv(stem, "head", 32, 1)
    inner = net.concat([net.conv(head, "i0", 32, 3), net.conv(head, "i1", 32, 3)], "inner")
    return graph_of(net.finish(net.concat([net.conv(stem, "own", 64, 3), inner], "outer")))


def test_the_outermost_fork_is_looked_at_first() -> None:
    graph = nested()
    position = {node.id: graph.group_of_node[i] for i, node in enumerate(graph.nodes)}
    outer, inner = forks_of(graph)
    assert (outer.entry, outer.join) == (position["stem"], position["outer"])
    inside = (position["head"], position["i0"], position["i1"], position["inner"])
    assert set(outer.branches) == {(position["own"],), tuple(sorted(inside))}
    assert inner == Fork(position["head"], position["inner"], ((position["i0"],), (position["i1"],)))
    # 18 units of work in "own", 1 + 9 + 9 beside it. With a CPU at 1.05 times the GPU's time halves of all 37 take
    # 19.4, "own" on the CPU 18.9, and what is beside it 19 on the GPU.
    plan = mulayer(with_ratio(graph, 1.05))
    assert len({where(plan)[name] for name in ("head", "i0", "i1")}) == 1
    assert where(plan)["own"] != where(plan)["head"]
    # With a CPU at 2.8 times the GPU's time only quarters pay, outside and inside.
    assert not mulayer(with_ratio(graph, 2.8)).overlap


def test_a_fork_may_be_at_the_models_inputs_and_needs_one_way_in_and_out() -> None:
    net = Builder("towers")
    left = net.conv(net.input("x", (1, 8, 16, 16)), "left", 8, 3)
    right = net.conv(net.input("y", (1, 8, 16, 16)), "right", 8, 3)
    (fork,) = forks_of(graph_of(net.finish(net.concat([left, right], "join"))))
    assert (fork.entry, fork.branches) == (INPUT, ((0,), (1,)))
    net = Builder("side_door")
    x = net.input("x", (1, 8, 16, 16))
    first = net.conv(x, "first", 8, 3)
    a, b = net.conv(first, "a", 8, 3), net.conv(first, "b", 8, 3)
    mixed = net.concat([b, x], "mixed")  # the input comes in at the side
    graph = graph_of(net.finish(net.concat([a, mixed], "join")))
    assert forks_of(graph) == []
    net = Builder("heads")  # paths that never meet
    x = net.conv(net.input("x", (1, 8, 16, 16)), "stem", 8, 3)
    assert forks_of(graph_of(net.finish(net.conv(x, "a", 8, 3), net.conv(x, "b", 8, 3)))) == []


@given(st.integers(0, 10**6), st.integers(4, 16))
@settings(max_examples=40, deadline=None)
def test_branches_of_random_models_lie_between_and_exchange_nothing(seed: int, layers: int) -> None:
    graph = random_graph(seed, layers)
    work = workload_of(graph)
    readers = [{r for t in item.writes for r in work.readers[t]} for item in work.items]
    for fork in forks(work):
        inside = {k: branch for branch in fork.branches for k in branch}
        assert len(fork.branches) > 1 and min(inside) > fork.entry and max(inside) < fork.join
        for k, branch in inside.items():
            sources = {work.made_at[r.tensor] for r in work.items[k].reads}
            assert sources <= {fork.entry, *branch}
            assert readers[k] <= {fork.join, *branch} and readers[k]
    device = SurrogateDevice(D1, graph)
    measured(device, mulayer(device))


@pytest.mark.parametrize("phone", ["d1", "d5"])
@pytest.mark.parametrize("model", [entry.name for entry in catalog()])
def test_every_zoo_model_has_a_valid_plan(model: str, phone: str) -> None:
    device = SurrogateDevice(load_spec(phone), resolve_model(model))
    plan = mulayer(device)
    assert not measured(device, plan).fallbacks
    assert plan.overlap == (model == "retinaface")  # the only one of them with branches


def test_operations_are_those_of_the_models_counts() -> None:
    graph = resolve_model("vgg16")
    work = workload_of(graph)
    macs = [sum(graph.nodes[n].macs for n in group.nodes) for group in graph.groups]
    assert [operations(i.geometry) for i in work.items if i.geometry.kind.value in ("conv", "gemm")] == [
        2 * m for m in macs if m
    ]


def mixed_spec() -> DeviceSpec:
    """d1 with an engine set whose CPU computes in int8, with a GPU in fp32 and the same one in fp16."""
    own = D1.engine("mace")
    cpu, gpu = (msgspec.structs.replace(p, engine="mixed") for p in own.processors)
    cpu = msgspec.structs.replace(cpu, precision="int8")
    half = msgspec.structs.replace(gpu, precision="fp16")
    links = [msgspec.structs.replace(own.links[0], host=cpu.id, accelerator=g.id) for g in (gpu, half)]
    engine = msgspec.structs.replace(own, processors=(cpu, gpu, half), links=tuple(links), calibrated_models=())
    return msgspec.structs.replace(D1, engines={"mixed": engine}, default_engine="mixed")


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    file = tmp_path / "mixed.json"
    file.write_bytes(msgspec.json.encode(mixed_spec()))
    return str(file)


def test_the_int8_cpu_and_the_fp16_gpu_are_taken(mixed: str) -> None:
    device = SurrogateDevice(load_spec(mixed), resolve_model("resnet18"))
    plan = mulayer(device)
    assert set(plan.processors) == {"gpu/mixed/fp16", "cpu/mixed/int8"}
    assert plan.splits > len(plan.segments) / 2
    same = mulayer(SurrogateDevice(D1, resolve_model("resnet18")))
    assert [[p.share_pct for p in s.parts] for s in plan.segments] == [
        [p.share_pct for p in s.parts] for s in same.segments
    ]


def test_int8_has_its_price_and_needs_a_budget(mixed: str) -> None:
    row = hetrl.measure("resnet18", mixed, policy="mulayer")
    assert row.accuracy_drop_pct == INT8_DROP_PCT and not row.keeps_budgets
    assert row.breaks is not None and "accuracy" in row.breaks
    allowed = hetrl.measure("resnet18", mixed, policy="mulayer", objective=Objective(max_accuracy_drop_pct=1.0))
    assert allowed.keeps_budgets and allowed.latency_ms == row.latency_ms
    listed = hetrl.compare("resnet18", mixed).rows
    (marked,) = (r for r in listed if r.policy == "mulayer")
    assert not marked.keeps_budgets and marked.latency_ms == row.latency_ms
