"""Hand policies follow their published rules, and are found by entry point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hetrl.agents.exact import exact
from hetrl.agents.policies import find_policy, policy_catalog
from hetrl.agents.policies.codl_rule import PLANNED_SYNC_MS
from hetrl.device_bridge.spec import DeviceSpec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.tables import MAX_CHAIN, Option
from hetrl.envs.space import PlanSpace
from hetrl.errors import HetrlError, UnknownName, UsageError
from hetrl.objective import Objective
from hetrl.plan import Axis, Memory, Part, Plan, Segment
from hetrl.testing.models import UNSUPPORTED, random_graph
from hetrl.zoo.builder import Builder
from hetrl.zoo.resolve import resolve_model
from tests.surrogate_help import COLD, D1, chain_graph, graph_of, latency_ms, measured, plan_with

CPU, GPU = "cpu/mace/fp32", "gpu/mace/fp32"


@pytest.fixture(scope="module")
def vgg16() -> SurrogateDevice:
    return SurrogateDevice(D1, resolve_model("vgg16"))


def convolution(size: int, channels: int, out: int, kernel: int) -> SurrogateDevice:
    net = Builder("one")
    return SurrogateDevice(
        D1, graph_of(net.finish(net.conv(net.input("x", (1, channels, size, size)), "y", out, kernel)))
    )


def split(device: SurrogateDevice, share: int, axis: Axis) -> Plan:
    """The only operator, split."""
    parts = (Part(GPU, share), Part(CPU, 100 - share))
    return plan_with(device, [Segment(nodes=("y",), parts=parts, axis=axis, memory=Memory.IMAGE)])


def busy_ms(device: SurrogateDevice, plan: Plan) -> dict[str, float]:
    answer = measured(device, plan)
    return {u.processor: u.busy * (answer.latency_ms or 0.0) for u in answer.utilization}


def all_splits(device: SurrogateDevice) -> Iterator[Plan]:
    return (split(device, s, a) for s in range(10, 100, 10) for a in (Axis.HEIGHT, Axis.OUTPUT_CHANNELS))


def test_codls_1x1_example_is_not_worth_splitting() -> None:
    device = convolution(52, 256, 128, 1)
    cpu, gpu = (find_policy(name).plan(device) for name in ("mace_cpu", "mace_gpu_image"))
    assert busy_ms(device, cpu)[CPU] == pytest.approx(1.505, rel=0.7)  # measured; an average over all 1x1 layers
    assert busy_ms(device, gpu)[GPU] == pytest.approx(1.126, rel=0.35)  # never fitted: an independent check
    alone = min(latency_ms(device, cpu), latency_ms(device, gpu))
    assert all(latency_ms(device, plan) > alone for plan in all_splits(device))
    (segment,) = find_policy("codl_image").plan(device).segments
    assert segment.parts == (Part(GPU),)


def test_codls_3x3_example_takes_the_published_times() -> None:
    device = convolution(112, 32, 64, 3)
    busy = busy_ms(device, split(device, 50, Axis.HEIGHT))
    assert busy[CPU] == pytest.approx(1.89, rel=0.15)
    assert busy[GPU] == pytest.approx(1.95, rel=0.3)


def sharing_ms(device: SurrogateDevice) -> tuple[float, float]:
    """Mapping and transforming the CPU's half of the input, where the only operator is split in halves of rows."""
    tables, link = device.cost_model().tables, device.engine.links[0]
    half = tables.options.index(Option((1, 0), Axis.HEIGHT, (50, 50)))
    melems = float(tables.host_in[0][0][half, 0])
    return link.map_ms.value + link.map_ms_per_melem.value * melems, link.image_ms_per_melem.value * melems


def test_codls_examples_pay_the_published_sharing() -> None:
    """Figure 3: map 0.07, transform 0.05, pre-sync 0.85 ms. Figure 4: 1.074 ms in all, 1.5 times slower split."""
    mapped, transformed = sharing_ms(convolution(112, 32, 64, 3))
    assert mapped == pytest.approx(0.07, rel=0.3) and transformed == pytest.approx(0.05, rel=0.4)
    assert 0.36 < D1.engine().links[0].sync_ms.value < 0.91  # 5 % and all of the waits that CoDL measured
    device = convolution(52, 256, 128, 1)
    assert sum(sharing_ms(device)) + PLANNED_SYNC_MS == pytest.approx(1.074, rel=0.15)
    alone = min(latency_ms(device, find_policy(name).plan(device)) for name in ("mace_cpu", "mace_gpu_image"))
    assert latency_ms(device, split(device, 50, Axis.HEIGHT)) / alone == pytest.approx(1.5, rel=0.15)


def test_a_chain_of_codls_shares_once() -> None:
    """Two operators in one chain save a wait, and the moving of the CPU's half there and back; halos cost a little."""
    device = SurrogateDevice(D1, chain_graph(2, size=112, channels=128))
    parts = (Part(GPU, 50), Part(CPU, 50))
    one = Segment(nodes=("l0", "l1"), parts=parts, axis=Axis.HEIGHT, memory=Memory.IMAGE)
    two = [msgspec.structs.replace(one, nodes=(name,)) for name in one.nodes]
    link, melems = device.engine.links[0], 128 * 112 * 112 / 1e6
    moved = (link.map_ms_per_melem.value + link.image_ms_per_melem.value) * melems / 2  # there, and as much back
    saved = link.map_ms.value + link.sync_ms.value + 2 * moved
    gained = latency_ms(device, plan_with(device, two)) - latency_ms(device, plan_with(device, [one]))
    assert 0.6 * saved < gained < 1.02 * saved  # one more row of input on one side: the rows are cut 56 to 56
    (segment,) = find_policy("codl_image").plan(device).segments
    assert segment.nodes == one.nodes and segment.axis is Axis.HEIGHT and len(segment.parts) == 2


@pytest.mark.parametrize("channels", [128, 256])
def test_a_wide_3x3_convolution_is_faster_split(channels: int) -> None:
    device = convolution(112, channels, channels, 3)
    alone = min(latency_ms(device, find_policy(name).plan(device)) for name in ("mace_cpu", "mace_gpu_image"))
    best = min(latency_ms(device, plan) for plan in all_splits(device))
    assert best < alone
    assert latency_ms(device, find_policy("codl_image").plan(device)) == best  # the planner finds it


def test_codl_splits_in_tenths_along_both_axes_and_makes_chains(vgg16: SurrogateDevice) -> None:
    plan = find_policy("codl_image").plan(vgg16)
    shares = [part.share_pct for segment in plan.segments for part in segment.parts]
    assert all(share % 10 == 0 for share in shares)
    divided = [s for s in plan.segments if len(s.parts) > 1]
    assert {s.axis for s in divided} == {Axis.HEIGHT, Axis.OUTPUT_CHANNELS}
    assert sum(len(s.nodes) for s in divided) > 0.8 * len(vgg16.graph.nodes)
    groups = [len({vgg16.graph.group_of_node[vgg16.graph.node_index[n]] for n in s.nodes}) for s in divided]
    assert max(groups) > 3
    assert all(s.memory is Memory.IMAGE and s.processors == (GPU, CPU) for s in divided)
    assert latency_ms(vgg16, plan) < latency_ms(vgg16, find_policy("mace_gpu_image").plan(vgg16)) / 1.4


def test_codl_buffer_is_the_same_plan_in_the_other_memory(vgg16: SurrogateDevice) -> None:
    image, buffer = (find_policy(f"codl_{memory}").plan(vgg16) for memory in ("image", "buffer"))
    moved = [msgspec.structs.replace(s, memory=s.memory and Memory.BUFFER) for s in image.segments]
    assert tuple(moved) == buffer.segments
    assert latency_ms(vgg16, buffer) > 2 * latency_ms(vgg16, image)


def test_codl_makes_no_chain_longer_than_its_limit() -> None:
    device = SurrogateDevice(D1, chain_graph(40, size=128, channels=64))
    lengths = [len(s.nodes) for s in find_policy("codl_image").plan(device).segments if len(s.parts) > 1]
    assert max(lengths) <= MAX_CHAIN


def test_mulayer_has_one_ratio_all_output_channels_no_chain(vgg16: SurrogateDevice) -> None:
    for device in (vgg16, SurrogateDevice(D1, resolve_model("resnet18"))):
        plan = find_policy("mulayer").plan(device)
        assert len(plan.segments) == len(device.graph.groups)
        divided = [s for s in plan.segments if len(s.parts) > 1]
        assert {s.axis for s in divided} == {Axis.OUTPUT_CHANNELS}
        (shares,) = {tuple(p.share_pct for p in s.parts) for s in divided}
        assert shares[0] in (25, 50, 75)
        assert {s.memory for s in plan.segments} == {Memory.BUFFER}
        assert len(divided) >= len(plan.segments) - 2


@pytest.mark.parametrize(
    ("policy", "processor", "memory"),
    [("mace_cpu", CPU, None), ("mace_gpu_buffer", GPU, Memory.BUFFER), ("mace_gpu_image", GPU, Memory.IMAGE)],
)
def test_mace_puts_the_whole_model_on_one_processor(policy: str, processor: str, memory: Memory | None) -> None:
    for seed in range(40, 60):
        device = SurrogateDevice(D1, random_graph(seed, 6))
        (segment,) = find_policy(policy).plan(device).segments
        assert (segment.parts, segment.memory) == ((Part(processor),), memory)
        assert set(segment.nodes) == {node.id for node in device.graph.nodes}
        answer = measured(device, find_policy(policy).plan(device))
        refused = any(node.op_type == UNSUPPORTED for node in device.graph.nodes)
        assert bool(answer.fallbacks) == (refused and processor == GPU)


def test_no_policy_beats_exact_on_random_models_and_all_say_who_made_them() -> None:
    for seed in range(60, 80):
        device = SurrogateDevice(D1, random_graph(seed, 8, size=(24, 96, 160)[seed % 3]))
        optimum = exact(PlanSpace(device, Objective()), Objective(), COLD)
        for policy in (p for p in policy_catalog() if p.applies(device)):
            plan = policy.plan(device)
            assert plan.made_by is not None and plan.made_by.method == policy.id
            assert plan.stretched or latency_ms(device, plan) >= optimum.bound_ms * (1 - 1e-12), policy.id


def phone(processors: int, memory: tuple[Memory, ...]) -> DeviceSpec:
    """d1 with its first processors only, and only some memory types."""
    engine = D1.engine()
    kept = [msgspec.structs.replace(p, memory=p.memory and memory) for p in engine.processors[:processors]]
    smaller = msgspec.structs.replace(engine, processors=tuple(kept), links=engine.links[: processors - 1])
    return msgspec.structs.replace(D1, engines={"mace": smaller})


@pytest.mark.parametrize(
    ("spec", "able"),
    [
        (phone(1, ()), {"mace_cpu"}),
        (phone(2, (Memory.IMAGE,)), {"mace_cpu", "mace_gpu_image", "codl_image"}),
        (phone(2, (Memory.BUFFER,)), {"mace_cpu", "mace_gpu_buffer", "codl_buffer", "mulayer"}),
    ],
)
def test_policies_that_need_what_the_device_lacks_do_not_apply(spec: DeviceSpec, able: set[str]) -> None:
    device = SurrogateDevice(spec, chain_graph(3))
    for policy in (p for p in policy_catalog() if p.family in ("mace", "codl", "mulayer")):
        assert policy.applies(device) == (policy.id in able)
        if policy.id in able:
            measured(device, policy.plan(device))
        else:
            with pytest.raises(UsageError, match=f"{policy.id}' needs .*d1 .mace. lacks"):
                policy.plan(device)


PUBLISHED = (
    "mace_cpu", "mace_gpu_buffer", "mace_gpu_image", "mace_dsp", "tflite_cpu", "tflite_gpu", "tflite_dsp",
    "mulayer", "codl_buffer", "codl_image", "nn_stretch_cpu_gpu", "nn_stretch_cpu_dsp", "nn_stretch_cpu_gpu_dsp",
    "band_fixed", "band_rr", "band_sel", "band_heft", "band_heft_reserved", "band_lst",
    "ort_greedy", "openvino_hetero", "onert_heft", "ncnn_default",
)  # fmt: skip


def test_the_catalog_names_everything_and_knows_a_typo() -> None:
    ids = [policy.id for policy in policy_catalog()]
    assert ids == sorted(ids) and set(PUBLISHED) <= set(ids)
    assert all(p.family and p.granularity and p.source and p.summary and "cpu" in p.units for p in policy_catalog())
    with pytest.raises(UnknownName, match="did you mean 'codl_image'"):
        find_policy("codl_imag")


@pytest.fixture
def plugin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path` that holds an installed distribution."""
    info = tmp_path / "toy_policies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-policies\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    policy_catalog.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    policy_catalog.cache_clear()


def test_a_third_partys_policy_is_found_like_the_built_in_ones(plugin_folder: Path) -> None:
    entry = "[hetrl.policies]\ntoy = toy_policies:toy\n"
    (plugin_folder / "toy_policies-1.0.dist-info" / "entry_points.txt").write_text(entry)
    (plugin_folder / "toy_policies.py").write_text(
        "from dataclasses import replace\n"
        "from hetrl.agents.policies.mace import mace_cpu\n"
        "toy = replace(mace_cpu, id='toy', family='toy')\n"
    )
    assert find_policy("toy").family == "toy"
    assert {"toy", "codl_image"} <= {policy.id for policy in policy_catalog()}
    device = SurrogateDevice(D1, chain_graph(2))
    made_by = find_policy("toy").plan(device).made_by
    assert made_by is not None and made_by.method == "toy"


def test_a_plug_in_that_cannot_be_imported_is_named(plugin_folder: Path) -> None:
    entry = "[hetrl.policies]\nbroken = no_such_module:policy\n"
    (plugin_folder / "toy_policies-1.0.dist-info" / "entry_points.txt").write_text(entry)
    with pytest.raises(HetrlError, match=r"broken.*no_such_module"):
        policy_catalog()
