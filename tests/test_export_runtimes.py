"""Plans exported to real runtimes: loaded there, right outputs, operators where the plan has them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace

import hetrl
from hetrl.device_bridge.spec import load_spec
from hetrl.errors import Infeasible
from hetrl.export.bundle import open_bundle
from hetrl.export.onnxruntime import read_sessions
from hetrl.exporting import Asked, export
from hetrl.graph.reader import load_graph
from hetrl.plan import Axis, Part
from hetrl.validating import validate_bundle
from tests.export_help import RUNTIMES, exported, hand_plan, random_model, random_plans, reseal, shared_plans, written


@pytest.mark.parametrize("format_name", RUNTIMES)
@pytest.mark.parametrize("seed", range(4))
def test_random_plans_load_and_compute_the_same(format_name: str, seed: int, tmp_path: Path) -> None:
    model = random_model(tmp_path, seed)
    for number, plan in enumerate((*shared_plans(model, 2), *random_plans(model, 2, seed=1))):
        exported(plan, model, format_name, tmp_path / f"out{number}")
        found = validate_bundle(tmp_path / f"out{number}", repeats=2)
        assert found.ok, found.checks
        assert {check.name for check in found.checks if check.ok} >= {"integrity", "loads", "outputs", "placement"}


@pytest.mark.parametrize("format_name", RUNTIMES)
def test_the_same_plan_gives_the_same_bytes(format_name: str, tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    plan = shared_plans(model, 1)[0]
    assert plan.splits
    for out in ("a", "b", "a.zip", "b.zip"):
        exported(plan, model, format_name, tmp_path / out)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert validate_bundle(tmp_path / "a.zip", repeats=1).ok


def test_sessions_wait_for_what_they_read_and_run_where_the_plan_says(tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    plan = shared_plans(model, 1)[0]
    exported(plan, model, "onnxruntime", tmp_path / "out")
    with open_bundle(tmp_path / "out") as bundle:
        sessions = read_sessions(bundle)
    makers: dict[str, set[int]] = {}
    for number, entry in enumerate(sessions.sessions):
        before = set(entry.after)
        for other in entry.after:
            before |= set(sessions.sessions[other].after)
        for port in entry.reads:
            assert makers.get(port.tensor, set()) <= _all_before(sessions.sessions, number)
        for port in entry.writes:
            makers.setdefault(port.tensor, set()).add(number)
        assert entry.processor in plan.segments[entry.segment].processors
    shared = [s for s in plan.segments if s.axis is not Axis.NONE]
    assert sum(len(s.parts) for s in shared) == sum(e.share_pct < 100 for e in sessions.sessions)


def _all_before(entries: tuple, number: int) -> set[int]:
    found, left = set(), [number]
    while left:
        for other in entries[left.pop()].after:
            if other not in found:
                found.add(other)
                left.append(other)
    return found


def test_nodes_say_processor_share_and_segment(tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    plan = shared_plans(model, 1)[0]
    exported(plan, model, "onnxruntime", tmp_path / "out")
    for path in sorted((tmp_path / "out").glob("*.onnx")):
        loaded = onnx.load(path, load_external_data=False)
        assert loaded.ir_version >= 10
        for node in loaded.graph.node:
            notes = {entry.key: entry.value for entry in node.metadata_props}
            segment = plan.segments[int(notes["hetrl.segment"])]
            assert Part(notes["hetrl.processor"], int(notes["hetrl.share_pct"])) in segment.parts


@pytest.mark.parametrize("format_name", ["openvino", "ncnn"])
def test_lowering_finds_the_best_plan_without_what_is_lost(format_name: str, tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    plan = shared_plans(model, 1)[0]
    done = exported(plan, model, format_name, tmp_path / "out", lower=True)
    with open_bundle(tmp_path / "out") as bundle:
        kept = bundle.manifest
    assert kept.plan.splits == 0 and not kept.plan.overlap and not kept.plan.caps
    assert any("one after the other" in limit.reason for limit in done.lowered)
    row = hetrl.measure(str(model), "d1", plan=kept.plan)
    assert done.expected is not None and done.expected.latency_ms == row.latency_ms
    given = hetrl.measure(str(model), "d1", plan=plan)
    assert done.given is not None and done.given.latency_ms == given.latency_ms
    single = [hetrl.measure(str(model), "d1", policy=name).latency_ms for name in ("mace_cpu", "mace_gpu_image")]
    assert row.latency_ms is not None and row.latency_ms <= min(ms for ms in single if ms is not None)


def test_parts_in_one_net_cost_their_sum(tmp_path: Path) -> None:
    plan = hand_plan("posenet", "codl_image")
    assert plan.splits
    asked = Asked(seeded_weights=0)
    together = export(written(plan, tmp_path), "onnxruntime", tmp_path / "a", asked).expected
    in_turn = export(written(plan, tmp_path), "ncnn", tmp_path / "b", asked).expected
    assert together is not None and in_turn is not None
    assert together.latency_ms == hetrl.measure("posenet", "d1", plan=plan).latency_ms
    assert in_turn.latency_ms > together.latency_ms
    assert in_turn.evidence == "predicted"


def test_what_a_runtime_does_without_is_said(tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    settings = [p for p in random_plans(model, 200) if p.caps and p.queue_window and p.kernel_slice_ms]
    plan = next(p for p in settings if not p.splits)
    done = exported(plan, model, "openvino", tmp_path / "out")
    assert {limit.field for limit in done.left_out} >= {"caps", "queue_window", "kernel_slice_ms"}
    without = replace(plan, caps=(), queue_window=None, kernel_slice_ms=None, overlap=False)
    assert done.expected is not None
    assert done.expected.latency_ms == hetrl.measure(str(model), "d1", plan=without).latency_ms


def test_a_bundle_keeps_caps(tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    plan = next(p for p in random_plans(model, 60) if p.caps)
    exported(plan, model, "onnxruntime", tmp_path / "out")
    duty = {cap.processor: cap.duty for cap in plan.caps}
    assert set(duty) <= set(plan.processors)
    for entry in json.loads((tmp_path / "out" / "sessions.json").read_text())["sessions"]:
        assert entry["duty"] == duty.get(entry["processor"], 1.0)


def test_a_processor_that_a_format_does_not_know_is_refused_unless_lowered(tmp_path: Path) -> None:
    graph = load_graph(random_model(tmp_path, 5))
    spec = load_spec("d1")
    engine, dsp = next((name, p.id) for name, e in spec.engines.items() for p in e.processors if p.unit == "dsp")
    whole = tuple(node for group in graph.groups for node in graph.group_node_ids(group.index))
    base = random_plans(tmp_path / "random5.onnx", 1)[0]
    segment = replace(base.segments[0], nodes=whole, parts=(Part(dsp),), axis=Axis.NONE, memory=None)
    plan = replace(base, engines=spec.engine(engine).engines, segments=(segment,), caps=(), overlap=False)
    asked = Asked(model=str(tmp_path / "random5.onnx"))
    with pytest.raises(Infeasible, match="no dsp"):
        export(written(plan, tmp_path), "ncnn", tmp_path / "out", asked)
    assert not (tmp_path / "out").exists()
    done = export(written(plan, tmp_path), "ncnn", tmp_path / "out", dataclasses.replace(asked, lower=True))
    assert done.lowered[0].field == "segments[0].parts"
    assert validate_bundle(tmp_path / "out", repeats=1).ok


def test_a_wrong_weight_is_noticed_by_its_output(tmp_path: Path) -> None:
    model = random_model(tmp_path, 5)
    exported(random_plans(model, 1)[0], model, "ncnn", tmp_path / "out")
    weights = tmp_path / "out" / "model.bin"
    numbers = np.frombuffer(weights.read_bytes(), np.float32).copy()
    numbers[np.isfinite(numbers) & (np.abs(numbers) > 1e-3)] *= 1.5
    weights.write_bytes(numbers.tobytes())
    reseal(tmp_path / "out")
    found = validate_bundle(tmp_path / "out", repeats=1)
    assert [check.name for check in found.checks if check.ok is False] == ["outputs"]


def test_a_vulkan_device_of_software_is_no_phones_gpu(tmp_path: Path) -> None:
    import ncnn

    if ncnn.get_gpu_count() == 0 or ncnn.get_gpu_info(0).type() != 3:
        pytest.skip("the first Vulkan device is not a software one, such as Mesa's llvmpipe")
    model = random_model(tmp_path, 3)
    plan = next(p for p in random_plans(model, 60) if any("gpu" in name for name in p.processors))
    exported(plan, model, "ncnn", tmp_path / "out")
    found = validate_bundle(tmp_path / "out", repeats=1)
    assert found.ok
    assert any("is no GPU" in moved.reason for moved in found.moved)
