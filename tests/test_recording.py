"""A recording answers as the device did, survives a crash, and says what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetrl.condition import Condition
from hetrl.device_bridge.base import Device, MockDevice
from hetrl.device_bridge.recording import Recorded, Recorder, open_replay, read_recording
from hetrl.device_bridge.registry import open_device
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.enumerate import Enumeration, Restriction, enumerate_plans
from hetrl.envs.space import PlanSpace
from hetrl.errors import RunError, UnknownName, UsageError
from hetrl.measurement import Failure, Measurement
from hetrl.objective import Objective
from hetrl.plan import Evidence, Plan
from hetrl.testing.devices import WITHOUT_UI, DeviceConformance, whole_model_plans
from hetrl.testing.models import random_graph

GRAPH = random_graph(11, 7)
COLD = Condition()


def surrogate() -> SurrogateDevice:
    return SurrogateDevice(load_spec("d1"), GRAPH)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """All whole-model plans of d1, under two conditions."""
    path = tmp_path / "d1.jsonl"
    with Recorder(surrogate(), path) as device:
        plans = whole_model_plans(device)
        device.measure_many(plans, COLD)
        for plan in plans:
            device.measure(plan, WITHOUT_UI)
    return path


class TestReplay(DeviceConformance):
    @pytest.fixture
    def device(self, recording: Path) -> Device:
        return open_device(f"replay:{recording}", GRAPH)


class TestRecorder(DeviceConformance):
    @pytest.fixture
    def device(self, tmp_path: Path) -> Iterator[Device]:
        with Recorder(surrogate(), tmp_path / "new.jsonl") as device:
            yield device


def test_replay_answers_as_the_device_did(recording: Path) -> None:
    real, again = surrogate(), open_replay(str(recording), GRAPH, None)
    plans = whole_model_plans(real)
    for condition in (COLD, WITHOUT_UI):
        assert again.measure_many(plans, condition) == real.measure_many(plans, condition)
    assert again.spec == real.spec and again.engine_name == real.engine_name
    unknown = again.measure(plans[0], Condition(competitors=3))
    assert unknown.error is not None and unknown.error.kind is Failure.UNKNOWN_PLAN
    assert "competitors=3" in unknown.error.message


def test_a_recording_goes_on_behind_a_torn_line(recording: Path) -> None:
    whole = recording.read_bytes()
    recording.write_bytes(whole[:-20])
    before = read_recording(recording)[1]
    lost = read_recording(recording.with_name("d1.jsonl"))[1]
    assert lost == before and len(before) == whole.count(b"\n") - 2
    real = surrogate()
    with Recorder(real, recording) as device:
        device.measure(whole_model_plans(real)[-1], WITHOUT_UI)
    assert recording.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"{}", b"not json", b"\xff\xfe", b'{"condition": "cold"}', b"[" * 5000])
def test_other_damage_is_one_clear_error(recording: Path, damage: bytes) -> None:
    lines = recording.read_bytes().splitlines()
    for number in (0, 2):
        recording.write_bytes(b"\n".join([*lines[:number], damage, *lines[number + 1 :], b""]))
        with pytest.raises(RunError, match=f"damaged in line {number + 1}") as caught:
            open_replay(str(recording), GRAPH, None)
        assert "\n" not in str(caught.value)


def test_files_that_are_no_recording(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        open_replay(str(tmp_path / "none.jsonl"), GRAPH, None)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(RunError, match="holds no recording"):
        open_replay(str(tmp_path / "empty.jsonl"), GRAPH, None)
    with pytest.raises(UsageError, match="names no file"):
        open_replay("", GRAPH, None)


def test_another_model_engine_or_device_is_told(recording: Path) -> None:
    other = random_graph(3, 7)
    with pytest.raises(UsageError, match=f"with {GRAPH.name!r}, not with {other.name!r}; add --model {GRAPH.name}"):
        open_replay(str(recording), other, None)
    with pytest.raises(UsageError, match="add --engine mace"):
        open_replay(str(recording), GRAPH, "tflite")
    assert open_replay(str(recording), GRAPH, "mace").engine_name == "mace"
    with pytest.raises(RunError, match="something else"):
        Recorder(SurrogateDevice(load_spec("d2"), GRAPH), recording)


def test_one_writer_at_a_time(recording: Path) -> None:
    with Recorder(surrogate(), recording), pytest.raises(RunError, match="another hetrl is writing"):
        Recorder(surrogate(), recording)
    Recorder(surrogate(), recording).close()


def test_a_failure_never_replaces_numbers(tmp_path: Path) -> None:
    answers = [
        Measurement(evidence=Evidence.MEASURED, latency_ms=1.0),
        Measurement(evidence=Evidence.MEASURED, latency_ms=5.0, samples_ms=(3.0, 5.0, 9.0), foreign_load=True),
        Measurement.failed(Failure.TIMEOUT, "too slow"),
    ]
    real = surrogate()
    plan, path = whole_model_plans(real)[0], tmp_path / "r.jsonl"
    with Recorder(MockDevice(real.spec, GRAPH, lambda p, c: answers.pop(0)), path) as device:
        for _ in range(3):
            device.measure(plan, COLD)
    assert len(read_recording(path)[1]) == 3
    pooled = open_replay(str(path), GRAPH, None).measure(plan, COLD)
    assert (pooled.latency_ms, pooled.samples_ms, pooled.foreign_load) == (4.0, (1.0, 3.0, 5.0, 9.0), True)


def test_a_crash_of_the_device_keeps_what_was_measured(tmp_path: Path) -> None:
    def answer(plan: Plan, condition: Condition) -> Measurement:
        if condition.ui is None:
            raise KeyboardInterrupt
        return Measurement(evidence=Evidence.MEASURED, latency_ms=1.0)

    real = surrogate()
    plan, path = whole_model_plans(real)[0], tmp_path / "r.jsonl"
    recorder = Recorder(MockDevice(real.spec, GRAPH, answer), path)
    recorder.measure(plan, COLD)
    with pytest.raises(KeyboardInterrupt):
        recorder.measure(plan, WITHOUT_UI)
    # Not closed yet: each line has reached the file by itself.
    assert [r.condition for r in read_recording(path)[1]] == [str(COLD)]
    assert msgspec.json.decode(path.read_bytes().splitlines()[1], type=Recorded).plan == plan
    recorder.close()


def every_plan(space: PlanSpace, restriction: Restriction) -> set[str]:
    """By trying out every sequence of legal decisions, all global ones included."""
    first = len(space.globals)
    columns = np.zeros((space.length, 1), dtype=np.int64)
    for step in range(space.length):
        made = []
        for column in columns.T:
            legal = np.flatnonzero(space.mask(step, column[:, None])[:, 0])
            if 0 < step < first:
                legal = legal[:1]  # what a restriction leaves alone
            for code in legal:
                after = column.copy()
                after[step] = code
                made.append(after)
        columns = np.stack(made, axis=1)
    found = set()
    for column in space.canonical(columns).T:
        plan = space.plan(column)
        inside = restriction.processors is None or set(plan.processors) <= set(restriction.processors)
        short = restriction.max_segments is None or len(plan.segments) <= restriction.max_segments
        if inside and short and (restriction.splits or not plan.splits) and (restriction.overlap or not plan.overlap):
            found.add(plan.key)
    return found


RESTRICTIONS = st.builds(
    Restriction,
    max_segments=st.sampled_from([None, 1, 2, 3]),
    processors=st.sampled_from([None, ("cpu/tflite/fp32", "gpu/tflite/fp16"), ("cpu/tflite/fp32",)]),
    splits=st.booleans(),
    overlap=st.booleans(),
)


@settings(max_examples=25)
@given(st.integers(0, 30), RESTRICTIONS)
def test_enumeration_is_complete_and_names_no_plan_twice(seed: int, restriction: Restriction) -> None:
    device = SurrogateDevice(load_spec("d1"), random_graph(seed, 3), "tflite")
    space = PlanSpace(device, Objective())
    enumeration = Enumeration(space, restriction)
    keys = [plan.key for plan in enumeration]
    assert len(keys) == enumeration.count == len(set(keys))
    assert set(keys) == every_plan(space, restriction)


def test_splits_are_enumerated_too() -> None:
    space = PlanSpace(SurrogateDevice(load_spec("d1"), random_graph(2, 2)), Objective())
    restriction = Restriction(max_segments=2)
    plans = list(enumerate_plans(space, 10_000, restriction))
    assert any(plan.splits for plan in plans)
    assert {plan.key for plan in plans} == every_plan(space, restriction)


def test_limits_of_an_enumeration() -> None:
    space = PlanSpace(surrogate(), Objective())
    with pytest.raises(UsageError, match=r"\d+ plans are more than 10"):
        enumerate_plans(space, 10)
    with pytest.raises(UnknownName, match="npu"):
        Enumeration(space, Restriction(processors=("npu/mace/int8",)))
    with pytest.raises(UsageError, match="at least 1"):
        Restriction(max_segments=0)
    assert Enumeration(PlanSpace(SurrogateDevice(load_spec("d1"), random_graph(5, 60)), Objective())).count > 10**20
