"""`hetrl profile --device`: what it measures, that it goes on where it stopped, and `--record`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hetrl
from hetrl.cli.main import run
from hetrl.condition import AT_REST, Condition
from hetrl.device_bridge.base import Device, MockDevice, ReplayDevice
from hetrl.device_bridge.recording import Recorder, read_recording
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.enumerate import Enumeration, Restriction
from hetrl.envs.setting import Setting
from hetrl.envs.space import PlanSpace
from hetrl.errors import DeviceFailed, RunError, UsageError
from hetrl.fidelity import MAX_OUTPUT_ERROR
from hetrl.measurement import Failure, Measurement
from hetrl.objective import Objective
from hetrl.plan import Evidence, Plan
from hetrl.plan_check import check_plan
from hetrl.profiling import ANY_OUTPUT, Profile, profile, random_plans, whole_plans
from hetrl.testing.models import random_graph
from tests.machine_help import Truth, assumed

GRAPH = random_graph(4, 12, unsupported=False)


def on(device: Device) -> Setting:
    return Setting.on(device, AT_REST, ANY_OUTPUT)


def space_of(seed: int, layers: int) -> PlanSpace:
    return PlanSpace(SurrogateDevice(assumed(), random_graph(seed, layers), "host"), Objective())


@settings(max_examples=15)
@given(st.integers(0, 40), st.integers(2, 14), st.integers(0, 5))
def test_random_plans_are_distinct_valid_and_reach_every_processor(graph: int, layers: int, seed: int) -> None:
    space = space_of(graph, layers)
    plans = random_plans(space, 40, np.random.default_rng(seed))
    assert len({plan.key for plan in plans}) == len(plans) <= 40
    placed = set()
    for plan in plans:
        for segment, groups in zip(plan.segments, check_plan(plan, space.graph), strict=True):
            if len(segment.parts) == 1:
                placed |= {(group, segment.processors[0]) for group in groups}
    assert len(placed) == space.groups * len(space.engine.processors) or len(plans) < 40
    again = random_plans(space, 40, np.random.default_rng(seed))
    assert [plan.key for plan in again] == [plan.key for plan in plans]


def test_random_plans_have_runs_of_all_lengths_and_splits() -> None:
    space = space_of(2, 20)
    plans = random_plans(space, 40, np.random.default_rng(0))
    lengths = [len(groups) for plan in plans for groups in check_plan(plan, space.graph)]
    assert min(lengths) == 1 and max(lengths) >= 8
    assert any(plan.splits for plan in plans) and any(not plan.splits for plan in plans)


def test_a_profile_is_continued_and_measures_nothing_twice(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    first = profile(on(Truth().device(GRAPH)), file, plans=6)
    assert (first.known, first.measured, first.failed) == (0, first.plans, 0)
    whole = whole_plans(PlanSpace(SurrogateDevice(assumed(), GRAPH, "host"), Objective()))
    assert set(first.whole_ms) == set(whole) and all(first.whole_ms.values())
    assert first.covered == first.pairs
    more = profile(on(Truth().device(GRAPH)), file, plans=9)
    assert more.known == first.plans and more.measured == more.plans - first.plans > 0
    records = read_recording(file)[1]
    assert len(records) == len({record.plan.key for record in records}) == more.plans
    assert {record.condition for record in records} == {str(AT_REST)}


def test_an_interrupt_keeps_what_is_there(tmp_path: Path) -> None:
    real, count = Truth().surrogate(GRAPH), 0

    def answer(plan: Plan, condition: Condition) -> Measurement:
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return real.measure(plan, condition)

    device = MockDevice(assumed(), GRAPH, answer, "host")
    stopped = profile(on(device), tmp_path / "p.jsonl", plans=10)
    assert stopped.interrupted and stopped.measured == 7
    rest = profile(on(device), tmp_path / "p.jsonl", plans=10)
    assert not rest.interrupted and rest.known == 7 and rest.known + rest.measured == rest.plans


def test_a_lost_device_ends_it_and_crashes_are_tried_again(tmp_path: Path) -> None:
    answers = [Failure.UNSUPPORTED, Failure.CRASHED, Failure.LOST]
    real = Truth().surrogate(GRAPH)

    def answer(plan: Plan, condition: Condition) -> Measurement:
        return Measurement.failed(answers.pop(0), "so it is") if answers else real.measure(plan, condition)

    device = MockDevice(assumed(), GRAPH, answer, "host")
    with pytest.raises(DeviceFailed, match="went away"):
        profile(on(device), tmp_path / "p.jsonl", plans=4)
    done = profile(on(device), tmp_path / "p.jsonl", plans=4)
    assert (done.known, done.failed) == (1, 1)  # what is unsupported stays so
    assert next(iter(done.whole_ms.values())) is None


def test_a_whole_space_is_recorded(tmp_path: Path) -> None:
    small = random_graph(3, 3)
    within = Restriction(processors=("cpu/openvino/fp32", "cpu/ncnn/fp32"), splits=False, overlap=False)
    found = profile(on(Truth().device(small)), tmp_path / "p.jsonl", within=within)
    plans = list(Enumeration(PlanSpace(SurrogateDevice(assumed(), small, "host"), Objective()), within))
    assert {r.plan.key for r in read_recording(tmp_path / "p.jsonl")[1]} >= {plan.key for plan in plans}
    assert found.plans <= len(plans) + 5  # and the whole model on each processor
    with pytest.raises(UsageError, match="plans are more than 3"):
        profile(on(Truth().device(small)), tmp_path / "q.jsonl", within=within, limit=3)
    assert not (tmp_path / "q.jsonl").exists()


def test_a_recording_goes_on_after_its_device_was_calibrated(tmp_path: Path) -> None:
    before, after = SurrogateDevice(assumed(), GRAPH, "host"), SurrogateDevice(Truth().spec(), GRAPH, "host")
    plan = next(iter(whole_plans(PlanSpace(before, Objective())).values()))
    for device in (before, after):
        with Recorder(device, tmp_path / "r.jsonl") as recorder:
            recorder.measure(plan, AT_REST)
    assert len(read_recording(tmp_path / "r.jsonl")[1]) == 2
    with pytest.raises(RunError, match="something else"):
        Recorder(SurrogateDevice(assumed("ssh://you@there"), GRAPH, "host"), tmp_path / "r.jsonl")


def test_a_recorder_compares_and_allows_as_its_device_does(tmp_path: Path) -> None:
    class Interleaving(MockDevice):
        limit: float | None = None

        def interleaves(self, condition):  # type: ignore[no-untyped-def]
            return True

        def compare(self, plans, condition):  # type: ignore[no-untyped-def]
            return [Measurement(evidence=Evidence.MEASURED, latency_ms=7.0) for _ in plans]

        def allowing(self, max_output_error):  # type: ignore[no-untyped-def]
            self.limit = max_output_error
            return self

        @property
        def notes(self) -> tuple[str, ...]:
            return ("it was lost once",)

    inner = Interleaving(assumed(), GRAPH, Truth().surrogate(GRAPH).measure, "host")
    with Recorder(inner, tmp_path / "r.jsonl").allowing(0.5) as recorder:
        plans = list(whole_plans(PlanSpace(SurrogateDevice(assumed(), GRAPH, "host"), Objective())).values())[:2]
        assert [m.latency_ms for m in recorder.compare(plans, AT_REST)] == [7.0, 7.0]
        assert inner.limit == 0.5 and recorder.notes == ("it was lost once",)
    assert [r.measurement.latency_ms for r in read_recording(tmp_path / "r.jsonl")[1]] == [7.0, 7.0]


def test_a_replay_refuses_outputs_that_the_device_would_have_refused() -> None:
    device = SurrogateDevice(assumed(), GRAPH, "host")
    plan = next(iter(whole_plans(PlanSpace(device, Objective())).values()))
    off = Measurement(evidence=Evidence.MEASURED, latency_ms=1.0, output_error=20 * MAX_OUTPUT_ERROR)
    again = ReplayDevice(device.spec, GRAPH, {(plan.key, str(AT_REST)): off}, "host")
    refused = again.measure(plan, AT_REST)
    assert refused.error is not None and refused.error.kind is Failure.WRONG_OUTPUT
    assert again.allowing(0.05).measure(plan, AT_REST).latency_ms == 1.0
    assert not again.allowing(0.05).allowing(None).measure(plan, AT_REST).ok


def test_rounds_measure_every_plan_so_often_with_all_others_between(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    first = profile(on(Truth().device(GRAPH)), file, plans=6)
    found = profile(on(Truth().device(GRAPH)), file, plans=6, rounds=3)
    assert (found.plans, found.rounds) == (first.plans, 3)
    assert (found.known, found.measured) == (first.plans, 2 * first.plans)
    keys = [record.plan.key for record in read_recording(file)[1]]
    turns = [keys[i * first.plans : (i + 1) * first.plans] for i in range(3)]
    assert all(set(turn) == set(turns[0]) for turn in turns) and turns[1] != turns[2]
    assert profile(on(Truth().device(GRAPH)), file, plans=6, rounds=3).measured == 0
    with pytest.raises(UsageError, match="0 rounds"):
        profile(on(Truth().device(GRAPH)), file, plans=6, rounds=0)


def test_a_plan_that_failed_for_good_is_not_measured_in_later_rounds(tmp_path: Path) -> None:
    device = MockDevice(
        assumed(), GRAPH, lambda plan, condition: Measurement.failed(Failure.UNSUPPORTED, "no such kernel"), "host"
    )
    found = profile(on(device), tmp_path / "p.jsonl", plans=2, rounds=4)
    assert found.measured == found.failed == found.plans
    device = MockDevice(assumed(), GRAPH, lambda plan, condition: Measurement.failed(Failure.TIMEOUT, "slow"), "host")
    found = profile(on(device), tmp_path / "q.jsonl", plans=2, rounds=4)
    assert found.measured == 4 * found.plans and found.failed == found.plans


# ---- commands ------------------------------------------------------------------------------------------------------

ON_D1 = ["--device", "d1", "--model", "resnet18"]


def test_the_command_records_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["profile", *ON_D1, "--plans", "3", "--out", "r.jsonl", "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["measured"] == said["plans"] == len(read_recording(Path("r.jsonl"))[1])
    assert run(["profile", "resnet18", "--device", "d1", "--plans", "3", "--out", "r.jsonl"]) == 0
    out, err = capsys.readouterr()
    assert f"holds {said['plans']} of {said['plans']} measurements (0 new" in out and "hetrl calibrate r.jsonl" in out
    assert "0 evaluations ahead" in err
    few = ["--enumerate", "--max-segments", "1", "--processors", "cpu/mace/fp32,gpu/mace/fp32", "--no-splits"]
    assert run(["profile", *ON_D1, *few, "--out", "s.jsonl"]) == 0
    assert "2 evaluations ahead" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("profile", "profile takes one model"),
        ("profile resnet18 --model vgg16", "profile takes one model"),
        ("profile resnet18", "add --npu-support"),
        ("profile resnet18 --device d1", "add --out resnet18.jsonl"),
        ("profile resnet18 --device d1 --out r.jsonl --limit 3", "add --enumerate"),
        ("profile resnet18 --device d1 --out r.jsonl --enumerate --plans 3", "is for random plans"),
        ("profile resnet18 --device d1 --out r.jsonl --enumerate", "plans are more than 2000"),
        ("profile resnet18 --device d1 --out r.jsonl --enumerate --processors npu", "npu"),
        ("profile resnet18 --device d1 --out r.jsonl --device-file d1", "add --npu-support"),
        ("profile resnet18 --npu-support --device d1", "is for recordings"),
        ("profile resnet18 --device d1 --out no/r.jsonl", "no/r.jsonl"),
    ],
)
def test_mistakes(
    words: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and told in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_everything_that_a_search_measures_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    found = hetrl.search("resnet18", "d1", sampler="random", budget=25, seed=1, record=file, condition="cold")
    keys = {record.plan.key for record in read_recording(file)[1]}
    assert len(keys) >= found.evaluations == 25
    again = hetrl.search("resnet18", f"replay:{file}", sampler="random", budget=25, seed=1, condition="cold")
    assert (again.latency_ms, again.evaluations) == (found.latency_ms, found.evaluations)
    row = hetrl.measure("resnet18", "d1", policy="mace_cpu", record=file)
    before = len(read_recording(file)[1])
    compared = hetrl.compare("resnet18", "d1", record=file)
    latest = [record.measurement.latency_ms for record in read_recording(file)[1][before:]]
    assert row.latency_ms in latest and {r.latency_ms for r in compared.rows} == set(latest)
    assert len(latest) < len(compared.rows)  # policies that plan the same share a measurement


def test_recording_another_device_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    hetrl.measure("resnet18", "d1", policy="mace_cpu", record=file)
    with pytest.raises(RunError, match="something else"):
        hetrl.measure("resnet18", "d2", policy="mace_cpu", record=file)


def test_devices_tells_of_real_ones(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetrl.cli.devices.find_spec", lambda name: None if name == "ncnn" else object())
    assert run(["devices", "--json"]) == 0
    listed = {one["id"]: one for one in json.loads(capsys.readouterr().out)["devices"]}
    assert load_spec("d1").id in listed
    engines = {one["name"]: (one["installed"], one["install"]) for one in listed["host"]["runtimes"]}
    assert engines["ncnn"] == (False, "pip install 'hetrl[ncnn]'") and engines["openvino"][0]
    assert run(["devices"]) == 0
    out = capsys.readouterr().out
    assert "pip install 'hetrl[ncnn]' brings ncnn" in out and "Engines for host: onnxruntime, openvino." in out
    assert all(address in out for address in ("ssh://USER@BOARD", "adb:SERIAL", "replay:FILE"))


def test_the_profile_is_a_plain_value(tmp_path: Path) -> None:
    found = hetrl.profile("resnet18", "d1", tmp_path / "r.jsonl", plans=1)
    assert isinstance(found, Profile) and found.best_ms == min(
        r.measurement.latency_ms for r in read_recording(tmp_path / "r.jsonl")[1] if r.measurement.latency_ms
    )


def test_a_replay_is_asked_as_it_was_recorded(tmp_path: Path) -> None:
    hetrl.profile("resnet18", "d1", tmp_path / "r.jsonl", plans=1)
    again = hetrl.measure("resnet18", f"replay:{tmp_path / 'r.jsonl'}", policy="mace_cpu")
    assert again.error is None and again.frame_drop_rate is None
