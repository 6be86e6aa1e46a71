"""Hand policies of TFLite and ncnn, and where which policy applies."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrl.agents.exact import exact
from hetrl.agents.policies import find_policy, policy_catalog
from hetrl.agents.policies.tflite_rule import delegated, partitions
from hetrl.device_bridge.spec import DeviceSpec, Engine, load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.tables import DEFAULT_SHARES_PCT, engine_options
from hetrl.envs.space import PlanSpace
from hetrl.errors import UsageError
from hetrl.graph import OperatorGraph
from hetrl.objective import Objective
from hetrl.plan import Plan
from hetrl.testing.models import UNSUPPORTED
from hetrl.zoo.builder import Builder
from hetrl.zoo.resolve import resolve_model
from tests.surrogate_help import COLD, D1, chain_graph, graph_of, latency_ms, measured, segments_by_group

D3 = load_spec("d3")
PHONE_RUNTIMES = ("mace", "tflite", "ncnn")
FAMILIES = {*PHONE_RUNTIMES, "codl", "mulayer"}
CPU, GPU, DSP = "cpu/tflite/fp32", "gpu/tflite/fp16", "dsp/tflite/int8"


def with_engine(name: str, engine: Engine, spec: DeviceSpec = D3) -> DeviceSpec:
    return msgspec.structs.replace(spec, engines={name: engine}, default_engine=name)


def refusing(engine: Engine, op_type: str) -> Engine:
    """The engine, with accelerators that do not take an operator."""
    processors = [
        p if p.unit == "cpu" else msgspec.structs.replace(p, unsupported=(*p.unsupported, op_type))
        for p in engine.processors
    ]
    return msgspec.structs.replace(engine, processors=tuple(processors))


def tflite_d3() -> DeviceSpec:
    return with_engine("tflite", refusing(D3.engine("tflite"), UNSUPPORTED))


def placed(device: SurrogateDevice, plan: Plan) -> list[str]:
    """Processor of each fusion group."""
    where = {node: s.processors[0] for s in plan.segments for node in s.nodes}
    return [where[device.graph.group_node_ids(g)[0]] for g in range(len(device.graph.groups))]


@given(st.lists(st.booleans(), max_size=20), st.integers(1, 4), st.integers(1, 4))
def test_partitions_are_the_largest_runs_of_supported_nodes(supported: list[bool], at_most: int, least: int) -> None:
    runs = partitions(supported)
    covered = [k for run in runs for k in run]
    assert covered == [k for k, takes in enumerate(supported) if takes]
    assert all(a.stop < b.start for a, b in pairwise(runs))
    chosen = delegated(supported, at_most, least)
    left = [run for run in runs if run not in chosen]
    assert len(chosen) <= at_most and all(len(run) >= least for run in chosen)
    if len(chosen) < at_most:
        assert all(len(run) < least for run in left)
    else:
        assert all(len(run) <= min(map(len, chosen)) for run in left)


def test_partitions_of_one_size_are_taken_from_the_front() -> None:
    assert delegated([True, True, False, True, True]) == [range(2)]
    assert delegated([True, False, True]) == []  # a single node is not worth a call
    assert delegated([True, False, True, True, False, True, True, True]) == [range(5, 8)]
    assert len(delegated([True, True, False, True, True], at_most=2)) == 2


def two_partitions() -> OperatorGraph:
    """Two heavy convolutions, an operator that no accelerator takes, then three light ones."""
    net = Builder("two_partitions")
    x = net.input("x", (1, 64, 112, 112))
    for number in range(2):
        x = net.conv(x, f"heavy{number}", 64, 3)
    x = net.activation(net.max_pool(x, "pool", 4, 4), "refused", UNSUPPORTED)
    for number in range(4):
        x = net.conv(x, f"light{number}", 64, 1)
    return graph_of(net.finish(x))


def refused_node(device: SurrogateDevice) -> str:
    """First node of the group that no accelerator takes."""
    return device.graph.group_node_ids(device.graph.group_of_node[device.graph.node_index["refused"]])[0]


def test_the_partition_with_most_nodes_is_not_the_best_one() -> None:
    """Issue 66 of google-ai-edge/LiteRT: 669 ms with the largest partition delegated, 402 ms with another."""
    device = SurrogateDevice(tflite_d3(), two_partitions())
    plan = find_policy("tflite_gpu").plan(device)
    heavy = device.graph.groups[: device.graph.group_of_node[device.graph.node_index["refused"]]]
    rest = len(device.graph.groups) - len(heavy) - 1
    assert len(heavy) < rest
    assert placed(device, plan) == [CPU] * len(heavy) + [GPU] * (1 + rest)
    (fallback,) = measured(device, plan).fallbacks
    assert fallback.node == refused_node(device) and fallback.cost_ms > 0 and UNSUPPORTED in fallback.reason
    other = segments_by_group(device, [GPU] * len(heavy) + [CPU] * (1 + rest))
    other = msgspec.structs.replace(other, device=plan.device)
    assert latency_ms(device, other) < 0.6 * latency_ms(device, plan)
    best = exact(PlanSpace(device, Objective()), Objective(), COLD)
    assert best.latency_ms <= latency_ms(device, other)


def test_tflites_delegates_take_a_whole_model_that_they_support() -> None:
    for name, units in (("d3", ("cpu", "gpu", "dsp")), ("d2", ("cpu", "gpu", "npu")), ("d8", ("cpu", "gpu"))):
        device = SurrogateDevice(load_spec(name), resolve_model("resnet18"), "tflite")
        for unit in units:
            plan = find_policy(f"tflite_{unit}").plan(device)
            (segment,) = plan.segments
            assert [p.unit for p in device.engine.processors if p.id == segment.processors[0]] == [unit]
            assert not measured(device, plan).fallbacks


def test_nothing_is_delegated_where_no_partition_is_large_enough() -> None:
    net = Builder("lonely")
    x = net.conv(net.input("x", (1, 8, 16, 16)), "one", 8, 3)
    x = net.activation(x, "refused", UNSUPPORTED)
    device = SurrogateDevice(tflite_d3(), graph_of(net.finish(net.conv(x, "two", 8, 3))))
    plan = find_policy("tflite_dsp").plan(device)
    assert plan.processors == (CPU,)


def test_ncnn_falls_back_layer_by_layer() -> None:
    spec = with_engine("ncnn", refusing(D3.engine("ncnn"), UNSUPPORTED))
    device = SurrogateDevice(spec, two_partitions())
    cpu, gpu = (find_policy(name).plan(device) for name in ("ncnn_default", "ncnn_gpu"))
    assert cpu.processors == ("cpu/ncnn/fp16",) and gpu.processors == ("gpu/ncnn/fp16",)
    assert not measured(device, cpu).fallbacks
    assert [f.node for f in measured(device, gpu).fallbacks] == [refused_node(device)]
    ran = [s.processors[0] for s in measured(device, gpu).segments]
    assert ran == ["gpu/ncnn/fp16", "cpu/ncnn/fp16", "gpu/ncnn/fp16"]


@pytest.mark.parametrize("name", [f"d{i}" for i in range(1, 9)])
@pytest.mark.parametrize("engine", PHONE_RUNTIMES)
def test_each_runtimes_own_policies_apply_to_it_alone(name: str, engine: str) -> None:
    device = SurrogateDevice(load_spec(name), chain_graph(3), engine)
    known = [policy for policy in policy_catalog() if policy.family in FAMILIES]
    able = {policy.id for policy in known if policy.applies(device)}
    units = {p.unit for p in device.engine.processors}
    if engine == "mace":
        own = {"mace_cpu", "mace_gpu_buffer", "mace_gpu_image", "codl_buffer", "codl_image", "mulayer"}
    elif engine == "ncnn":
        own = {"ncnn_default", "ncnn_gpu"}
    else:
        own = {f"{engine}_{unit}" for unit in units}
    assert able == own
    for policy in known:
        if policy.id in able:
            measured(device, policy.plan(device))
        else:
            with pytest.raises(UsageError, match=f"{policy.id}' needs .*{name} .{engine}. lacks"):
                policy.plan(device)


def renamed(engine: Engine, name: str) -> Engine:
    ids = {p.id: f"{p.unit}/{name}/{p.precision}" for p in engine.processors}
    return msgspec.structs.replace(
        engine,
        processors=tuple(msgspec.structs.replace(p, engine=name) for p in engine.processors),
        links=tuple(
            msgspec.structs.replace(link, host=ids[link.host], accelerator=ids[link.accelerator])
            for link in engine.links
        ),
    )


def test_an_engine_of_ones_own_is_planned_like_maces() -> None:
    graph = chain_graph(3)
    for engine, shared in ((D1.engine("mace"), True), (D3.engine("tflite"), False)):
        device = SurrogateDevice(with_engine("mine", renamed(engine, "mine")), graph)
        able = {policy.id for policy in policy_catalog() if policy.applies(device)}
        assert {"mace_cpu", "mace_gpu_buffer", "mace_gpu_image"} <= able
        assert ({"codl_buffer", "codl_image", "mulayer"} <= able) == shared
        assert not {i for i in able if i.startswith(("tflite", "ncnn"))}


def test_codl_and_mulayer_use_their_two_processors_alone() -> None:
    """On an engine with a third processor, whose link comes first, their plans are those of an engine without it."""
    own, dsp = D1.engine("mace"), renamed(D3.engine("tflite"), "mace")
    cpu, gpu = own.processors
    third = next(p for p in dsp.processors if p.unit == "dsp")
    link = next(x for x in dsp.links if x.accelerator == third.id)
    link = msgspec.structs.replace(link, host=cpu.id, splits=True)
    wide = msgspec.structs.replace(own, processors=(cpu, third, gpu), links=(link, *own.links))
    assert len(engine_options(wide)) == 3 + 4 * len(DEFAULT_SHARES_PCT)
    for graph in (resolve_model("resnet18"), chain_graph(6, size=112, channels=64)):
        narrow_device, wide_device = (SurrogateDevice(with_engine("mace", e, D1), graph) for e in (own, wide))
        for name in ("codl_image", "codl_buffer", "mulayer"):
            narrow, found = (find_policy(name).plan(device) for device in (narrow_device, wide_device))
            assert found.segments == narrow.segments
            assert latency_ms(wide_device, found) == pytest.approx(latency_ms(narrow_device, narrow))
