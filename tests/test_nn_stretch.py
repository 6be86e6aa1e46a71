"""Branches: several processors, each with its channels of several groups; and NN-Stretch, which plans with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hetrl
from hetrl.accuracy import INT8_DROP_PCT, kept_weights, plan_accuracy_drop_pct, predicted_accuracy_drop_pct
from hetrl.agents.policies import find_policy
from hetrl.agents.policies.nn_stretch_rule import shares_of, stages_of
from hetrl.condition import Ui, parse_condition
from hetrl.device_bridge.spec import DeviceSpec, load_spec
from hetrl.device_bridge.surrogate.cost_model import CostModel, Schedules
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule, batch_of
from hetrl.device_bridge.surrogate.tables import MEMORIES, Option, build_tables, supports
from hetrl.device_bridge.surrogate.workload import workload_of
from hetrl.envs.space import PlanSpace
from hetrl.errors import PlanError, UsageError
from hetrl.graph import OperatorGraph
from hetrl.measurement import Failure
from hetrl.objective import Objective
from hetrl.plan import Axis, Evidence, Memory, Part, Plan, Segment, decode_plan, encode_plan
from hetrl.testing.models import UNSUPPORTED, random_graph
from hetrl.zoo.builder import Builder
from hetrl.zoo.resolve import resolve_model
from tests.surrogate_help import COLD, D1, chain_graph, graph_of, latency_ms, measured, plan_with

CPU, GPU, DSP = "cpu/tflite/fp32", "gpu/tflite/fp16", "dsp/tflite/int8"
TEAMS = {(1, 0): (50, 50), (2, 0): (60, 40), (1, 2, 0): (30, 40, 30)}
POLICIES = ("nn_stretch_cpu_gpu", "nn_stretch_cpu_dsp", "nn_stretch_cpu_gpu_dsp")


def tflite(graph: OperatorGraph, spec: DeviceSpec = D1) -> SurrogateDevice:
    return SurrogateDevice(spec, graph, "tflite")


def wide_chain(*channels: int, size: int = 32) -> OperatorGraph:
    """1x1 convolutions from one number of channels to the next."""
    net = Builder("wide")
    x = net.input("x", (1, channels[0], size, size))
    for number, (_, out) in enumerate(pairwise(channels)):
        x = net.conv(x, f"l{number}", out, 1, bias=False)
    return graph_of(net.finish(x))


def branches(device: SurrogateDevice, shares: Sequence[tuple[str, int]], memory: Memory | None = None) -> Plan:
    """The whole model in branches."""
    nodes = tuple(n for g in range(len(device.graph.groups)) for n in device.graph.group_node_ids(g))
    parts = tuple(Part(name, share) for name, share in shares)
    return plan_with(device, [Segment(nodes=nodes, parts=parts, axis=Axis.BRANCHES, memory=memory)])


def busy_ms(device: SurrogateDevice, plan: Plan) -> dict[str, float]:
    answer = measured(device, plan)
    return {u.processor: u.busy * (answer.latency_ms or 0) for u in answer.utilization}


def alone_ms(graph: OperatorGraph, processor: str) -> float:
    """Working time of a model on one processor."""
    device = tflite(graph)
    nodes = tuple(n for g in range(len(graph.groups)) for n in graph.group_node_ids(g))
    return busy_ms(device, plan_with(device, [Segment(nodes=nodes, parts=(Part(processor),))]))[processor]


def test_a_branch_takes_as_long_as_its_narrow_network() -> None:
    """Its first convolution reads all 64 channels; the others only the 48 or 16 that the branch made itself."""
    device = tflite(wide_chain(64, 64, 64, 64))
    took = busy_ms(device, branches(device, [(GPU, 75), (CPU, 25)]))
    assert took[GPU] == pytest.approx(alone_ms(wide_chain(64, 48, 48, 48), GPU), rel=1e-12)
    assert took[CPU] == pytest.approx(alone_ms(wide_chain(64, 16, 16, 16), CPU), rel=1e-12)
    assert took[DSP] == 0


def test_a_segment_takes_its_slowest_branch_contention_and_the_moving_of_both_ends() -> None:
    graph = wide_chain(64, 64, 128)
    device = tflite(graph)
    answer = measured(device, branches(device, [(GPU, 50), (DSP, 25), (CPU, 25)]))
    took = {u.processor: u.busy * (answer.latency_ms or 0) for u in answer.utilization}
    links = device.engine.links
    rate = max(link.map_ms_per_melem.value for link in links)
    melem = 32 * 32 / 1e6
    moved = sum(link.map_ms.value + link.sync_ms.value for link in links)
    moved += rate * melem * (2 * 64)  # both accelerators read all of the input
    moved += rate * melem * 0.75 * 128  # and give back three quarters of the output
    per_position = []
    tables = build_tables(workload_of(graph), device.engine, [Option((1, 2, 0), Axis.BRANCHES, (50, 25, 25))])
    for k in (0, 1):
        per_position.append(float(tables.time_ms[0, k, 0, k].max()))
    contention = max(link.contention.value for link in links)
    assert answer.latency_ms == pytest.approx(moved + (1 + contention) * sum(per_position), rel=1e-12)
    assert answer.latency_ms > max(took.values())


def test_a_residual_operand_is_read_by_the_share_and_a_second_path_from_the_start_whole() -> None:
    net = Builder("residual")
    x = net.input("x", (1, 64, 16, 16))
    left = net.conv(net.conv(x, "a", 64, 1), "b", 64, 1)
    graph = graph_of(net.finish(net.add(net.conv(x, "skip", 64, 1), left, "sum")))
    tables = build_tables(workload_of(graph), D1.engine("tflite"), [Option((1, 0), Axis.BRANCHES, (75, 25))])
    gpu = tables.parts[1]
    assert gpu is not None
    narrow = {
        (int(k), int(o)): int(c) for k, o, c in zip(gpu.position, gpu.offset, gpu.shapes.in_channels, strict=True)
    }
    assert all(narrow[k, 0] == 64 and narrow[k, 1] == 48 for k in range(3))
    skip = next(k for k, item in enumerate(tables.workload.items) if len(item.reads) > 1)
    data, aligned = (tables.host_in[skip][slot][0, 0] for slot in (0, 1))
    assert aligned == pytest.approx(0.75 * data)
    device = tflite(graph)
    assert busy_ms(device, branches(device, [(GPU, 75), (CPU, 25)]))[GPU] == pytest.approx(
        sum(float(tables.time_ms[0, k, 0, 1 if name == "b" else 0, 1]) for k, name in enumerate(names(graph)))
    )


def names(graph: OperatorGraph) -> list[str]:
    return [graph.group_node_ids(g)[0] for g in range(len(graph.groups))]


@pytest.mark.parametrize("shares", [(100, 0), (101, -1), (70, 20)])
def test_every_branch_has_a_share_of_one_hundred_per_cent(shares: tuple[int, int]) -> None:
    device = tflite(wide_chain(64, 64, 64))
    with pytest.raises(PlanError):
        branches(device, list(zip((GPU, CPU), shares, strict=True)))


def test_a_branch_without_channels_is_a_failed_measurement() -> None:
    device = tflite(wide_chain(64, 64, 64))
    answer = device.measure(branches(device, [(GPU, 99), (CPU, 1)]), COLD)
    assert answer.error is not None and answer.error.kind is Failure.UNSUPPORTED


def test_branches_need_operators_with_channels_of_their_own_and_linked_processors() -> None:
    device = tflite(chain_graph(3, channels=16))
    with pytest.raises(PlanError, match="cannot split over"):
        device.measure(branches(device, [(CPU, 50), (GPU, 50)]), COLD)  # the host comes last
    with pytest.raises(PlanError, match="cannot split over"):
        device.measure(branches(device, [(GPU, 50), (DSP, 50)]), COLD)
    plan = branches(device, [(GPU, 30), (DSP, 40), (CPU, 30)])
    height = msgspec.structs.replace(plan, segments=(msgspec.structs.replace(plan.segments[0], axis=Axis.HEIGHT),))
    with pytest.raises(PlanError, match="cannot split over"):
        device.measure(height, COLD)  # only branches have three parts
    net = Builder("shuffled")
    x = net.concat([net.conv(net.input("x", (1, 16, 16, 16)), "a", 16, 3)] * 2, "twice")
    other = tflite(graph_of(net.finish(net.conv(x, "b", 16, 3))))
    with pytest.raises(PlanError, match="cannot be split along branches"):
        other.measure(branches(other, [(GPU, 50), (CPU, 50)]), COLD)


def stretched_options(graph: OperatorGraph) -> tuple[CostModel, tuple[Option, ...]]:
    engine = D1.engine("tflite")
    singles = tuple(Option((p,)) for p in range(3))
    options = (*singles, *(Option(team, Axis.BRANCHES, shares) for team, shares in TEAMS.items()))
    return CostModel(build_tables(workload_of(graph), engine, options), D1.idle_w.value), options


def random_batch(model: CostModel, options: Sequence[Option], seed: int, size: int = 12) -> Schedules:
    """Schedules with branches wherever they are possible for a run of groups."""
    random = np.random.default_rng(seed)
    tables, n = model.tables, len(model.tables.workload.items)
    schedules = []
    for _ in range(size):
        segments, k = [], 0
        while k < n:
            length = int(random.integers(1, n - k + 1))
            able = [o for o in range(len(options)) if tables.possible[k : k + length, o].all()]
            inner = [
                o for o in able if not options[o].split or np.isfinite(tables.time_ms[0, k : k + length, o, 1]).all()
            ]
            segments.append(Placed(k, k + length - 1, int(random.choice(inner)), Memory.BUFFER))
            k += length
        schedules.append(Schedule(tuple(segments), overlap=bool(random.integers(2))))
    return batch_of(schedules, n, 3)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_branches_in_a_batch_are_as_alone_and_no_faster_than_their_slowest_part(seed: int) -> None:
    graph = random_graph(seed % 60, 2 + seed % 8, size=32, unsupported=False)
    model, options = stretched_options(graph)
    if len(model.tables.workload.items) < 2:
        return
    batch = random_batch(model, options, seed)
    ui = Ui()
    together = model.evaluate(batch, ui)
    assert np.isfinite(together.latency_ms).all()
    assert (together.latency_ms >= together.busy_ms.max(axis=0) * (1 - 1e-12)).all()
    for b in range(batch.option.shape[1]):
        one = Schedules(*(getattr(batch, f.name)[..., [b]] for f in fields(Schedules)))
        alone = model.evaluate(one, ui)
        for name in ("latency_ms", "frame_drop_rate", "peak_memory_mb", "energy_mj", "busy_ms"):
            assert np.array_equal(getattr(together, name)[..., b], getattr(alone, name)[..., 0]), name


def test_wider_branches_are_slower_and_two_merge_points_dearer_than_one() -> None:
    device = tflite(wide_chain(64, 64, 64, 64, 64))
    gpu = [busy_ms(device, branches(device, [(GPU, s), (CPU, 100 - s)]))[GPU] for s in (25, 50, 75)]
    assert gpu == sorted(gpu)
    once = branches(device, [(GPU, 50), (CPU, 50)])
    (whole,) = once.segments
    halves = [msgspec.structs.replace(whole, nodes=nodes) for nodes in (whole.nodes[:2], whole.nodes[2:])]
    assert latency_ms(device, plan_with(device, halves)) > latency_ms(device, once)


def test_stretched_plans_survive_the_plan_file_and_are_outside_the_space() -> None:
    device = tflite(resolve_model("resnet18"))
    for name in POLICIES:
        plan = find_policy(name).plan(device)
        assert plan.stretched and decode_plan(encode_plan(plan)) == plan
        assert PlanSpace(device, Objective()).encode(plan) is None
        assert measured(device, plan).evidence is Evidence.PREDICTED
    mace = SurrogateDevice(D1, resolve_model("vgg16"))
    assert mace.graph.structure_hash in mace.engine.calibrated_models  # but no stretched network is
    assert measured(mace, find_policy("nn_stretch_cpu_gpu").plan(mace)).evidence is Evidence.PREDICTED


# ---------------------------------------------------------------------------------------------------------------------
# Accuracy


def test_branches_cost_what_pruning_away_as_many_weights_does() -> None:
    assert kept_weights([50, 50]) == pytest.approx(0.5) and kept_weights([20, 20, 60]) == pytest.approx(0.44)
    device = tflite(wide_chain(64, 64, 64))
    plan = branches(device, [(GPU, 50), (CPU, 50)])
    assert plan_accuracy_drop_pct(plan) == pytest.approx(predicted_accuracy_drop_pct(1 - 0.5**0.5))
    int8 = plan_accuracy_drop_pct(branches(device, [(DSP, 50), (CPU, 50)]))
    assert int8 == pytest.approx(plan_accuracy_drop_pct(plan) + INT8_DROP_PCT)


@given(st.integers(1, 99), st.integers(1, 98))
def test_branches_are_never_free_and_more_of_them_never_cheaper(first: int, second: int) -> None:
    device = tflite(wide_chain(64, 64))
    two = plan_accuracy_drop_pct(branches(device, [(GPU, first), (CPU, 100 - first)]))
    assert two > 0
    if first + second < 100:
        three = kept_weights([first, second, 100 - first - second])
        assert three < kept_weights([first, 100 - first])


# ---------------------------------------------------------------------------------------------------------------------
# The policy


@pytest.mark.parametrize("policy", POLICIES)
def test_branches_of_resnet50_end_together(policy: str) -> None:
    device = tflite(resolve_model("resnet50"))
    plan = find_policy(policy).plan(device)
    stretched = [s for s in plan.segments if s.axis is Axis.BRANCHES]
    assert 1 <= len(stretched) <= 5  # few merge points
    for segment in stretched:
        assert {name.split("/")[0] for name in segment.processors} == set(policy.removeprefix("nn_stretch_").split("_"))
        took = branch_times(device, segment)
        assert max(took) <= 1.2 * min(took), took


def branch_times(device: SurrogateDevice, segment: Segment) -> list[float]:
    """Working time of each branch, by hand from the tables."""
    index = [p.id for p in device.engine.processors]
    option = Option(tuple(index.index(p) for p in segment.processors), Axis.BRANCHES,
                    tuple(p.share_pct for p in segment.parts))  # fmt: skip
    tables = build_tables(workload_of(device.graph), device.engine, [option])
    groups = sorted({device.graph.group_of_node[device.graph.node_index[n]] for n in segment.nodes})
    took = np.zeros(len(index))
    for k in groups:
        reads = tables.workload.items[k].reads
        inner = tables.workload.made_at[reads[0].tensor] >= groups[0]
        took += tables.time_ms[MEMORIES.index(Memory.BUFFER), k, 0, int(inner)]
    return [float(t) for t in took if t > 0]


def test_slow_processors_get_narrow_branches() -> None:
    device = tflite(resolve_model("resnet50"))
    alone = {unit: latency_ms(device, find_policy(f"tflite_{unit}").plan(device)) for unit in ("cpu", "gpu", "dsp")}
    (segment,) = (s for s in find_policy(POLICIES[2]).plan(device).segments if s.axis is Axis.BRANCHES)
    share = {part.processor.split("/")[0]: part.share_pct for part in segment.parts}
    assert sorted(share, key=share.__getitem__) == sorted(alone, key=alone.__getitem__, reverse=True)


def test_stages_end_where_the_resolution_changes_and_cover_all_convolutions() -> None:
    graph = resolve_model("resnet50")
    stages = stages_of(graph)
    assert [s.start for s in stages] == [0, *(s.stop for s in stages[:-1])]
    for stage, following in pairwise(stages):
        assert graph.group_geometry(stage[-1]).out_h > graph.group_geometry(following[-1]).out_h
    behind = range(stages[-1].stop, len(graph.groups))
    assert [graph.group_geometry(g).kind.value for g in behind] == ["global_pool", "gemm"]


def test_what_one_unit_refuses_is_left_to_the_others() -> None:
    """The first stage holds an operator that no accelerator takes; the second one is stretched."""
    net = Builder("two_stages")
    x = net.conv(net.input("x", (1, 32, 64, 64)), "a", 64, 3)
    x = net.conv(net.activation(x, "refused", UNSUPPORTED), "b", 64, 3)
    x = net.conv(net.conv(net.conv(x, "down", 128, 3, stride=2), "c", 128, 3), "d", 128, 3)
    graph = graph_of(net.finish(x))
    spec = load_spec("d3")
    engine = spec.engine("tflite")
    refusing = [msgspec.structs.replace(p, unsupported=(*p.unsupported, UNSUPPORTED)) if p.unit == "dsp" else p
                for p in engine.processors]  # fmt: skip
    kept = msgspec.structs.replace(engine, processors=tuple(refusing))
    device = tflite(graph, msgspec.structs.replace(spec, engines={**spec.engines, "tflite": kept}))
    assert not all(supports(refusing[2], item) for item in device.cost_model().tables.workload.items)
    plan = find_policy("nn_stretch_cpu_gpu_dsp").plan(device)
    assert not measured(device, plan).fallbacks
    where = {node: s.processors for s in plan.segments for node in s.nodes}
    assert DSP not in where["refused"] and set(where["c"]) == set(where["d"]) == {CPU, GPU, DSP}


def test_networks_without_merge_points_run_on_the_fastest_processor_of_the_team() -> None:
    net = Builder("narrow")
    graph = graph_of(net.finish(net.gemm(net.flatten(net.input("x", (1, 4, 8, 8)), "flat"), "logits", 10)))
    device = tflite(graph)
    for policy in POLICIES:
        plan = find_policy(policy).plan(device)
        assert not plan.stretched and plan_accuracy_drop_pct(plan) in (0.0, INT8_DROP_PCT)
        assert measured(device, plan).ok


def test_policies_apply_where_their_units_are() -> None:
    graph = chain_graph(2)
    for name, able in (("d1", set(POLICIES)), ("d2", {POLICIES[0]}), ("d8", {POLICIES[0]})):
        device = tflite(graph, load_spec(name))
        assert {p for p in POLICIES if find_policy(p).applies(device)} == able
    mace = SurrogateDevice(D1, graph)
    assert [find_policy(p).applies(mace) for p in POLICIES] == [True, False, False]
    with pytest.raises(UsageError, match=r"needs dsp, which d1 \(mace\) lacks"):
        find_policy(POLICIES[2]).plan(mace)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=4), st.integers(1, 60))
def test_shares_sum_to_one_hundred_and_none_is_too_small(weights: list[float], least: int) -> None:
    shares = shares_of(np.array(weights), least)
    assert (shares is None) == (least * len(weights) > 100)
    if shares is not None:
        assert sum(shares) == 100 and min(shares) >= least
        by_weight = [share for _, share in sorted(zip(weights, shares, strict=True))]
        assert all(b >= a - len(weights) for a, b in pairwise(by_weight))


def test_competitors_slow_the_host_branch_down_and_with_it_all() -> None:
    device = tflite(resolve_model("resnet50"))
    plan = find_policy(POLICIES[2]).plan(device)
    cold, loaded = (measured(device, plan, parse_condition(c)).latency_ms for c in ("cold", "cold,competitors=1"))
    single = find_policy("tflite_dsp").plan(device)
    dsp = measured(device, single, parse_condition("cold,competitors=1")).latency_ms
    assert cold is not None and loaded is not None and dsp is not None
    assert cold < latency_ms(device, single) and loaded > dsp


def test_the_tuner_lists_them_and_never_chooses_them() -> None:
    """They change the network, whatever accuracy may cost."""
    for points in (0.0, 5.0):
        result = hetrl.tune("resnet50", "d1", budget=30, objective=Objective(max_accuracy_drop_pct=points))
        (row,) = (r for r in result.rows if r.policy == POLICIES[0])
        assert not row.keeps_budgets and 0 < row.accuracy_drop_pct < 5
        assert "trained anew" in (row.breaks or "")
        assert not result.plan.stretched
        assert result.best_hand is not None and result.best_hand.policy not in POLICIES
        assert result.latency_ms <= result.best_hand.latency_ms
