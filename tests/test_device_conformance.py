"""hetrl's own devices pass the suite that it ships, and devices with a defect do not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import msgspec
import pytest

from hetrl.agents.policies import policy_catalog
from hetrl.condition import Condition
from hetrl.device_bridge.base import Device, MockDevice, ReplayDevice, record
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.measurement import Failure, Measurement
from hetrl.plan import Evidence, Plan
from hetrl.testing.devices import WITH_UI, WITHOUT_UI, DeviceConformance, whole_model_plans
from hetrl.testing.models import random_graph

GRAPH = random_graph(11, 7)
D1 = SurrogateDevice(load_spec("d1"), GRAPH)


def _plans() -> list[Plan]:
    return [*whole_model_plans(D1), *(policy.plan(D1) for policy in policy_catalog() if policy.applies(D1))]


class TestSurrogate(DeviceConformance):
    @pytest.fixture
    def device(self) -> Device:
        return D1

    @pytest.fixture
    def plans(self) -> list[Plan]:
        return _plans()


class TestMock(DeviceConformance):
    @pytest.fixture
    def device(self) -> Device:
        return MockDevice(D1.spec, GRAPH, D1.measure)


class TestReplay(DeviceConformance):
    @pytest.fixture
    def device(self) -> Device:
        both = [record(D1, _plans(), condition) for condition in (WITH_UI, WITHOUT_UI)]
        return ReplayDevice(D1.spec, GRAPH, {key: m for device in both for key, m in device._records.items()})

    @pytest.fixture
    def plans(self) -> list[Plan]:
        return _plans()


def test_a_replay_says_so_of_a_plan_that_it_never_saw() -> None:
    first, second = whole_model_plans(D1)
    replay = record(D1, [first], WITH_UI)
    assert replay.measure(first, WITH_UI) == D1.measure(first, WITH_UI)
    for plan, condition in ((second, WITH_UI), (first, WITHOUT_UI)):
        error = replay.measure(plan, condition).error
        assert error is not None and error.kind is Failure.UNKNOWN_PLAN


def test_a_failed_measurement_has_no_numbers_and_others_have() -> None:
    with pytest.raises(ValueError, match="either"):
        Measurement(evidence=Evidence.MEASURED)
    failed = Measurement.failed(Failure.LOST, "the cable fell out")
    assert not failed.ok and failed.latency_ms is None


def _changed(**fields: object) -> Callable[[Plan, Condition], Measurement]:
    return lambda plan, condition: msgspec.structs.replace(D1.measure(plan, condition), **fields)


@pytest.mark.parametrize(
    ("answer", "test"),
    [
        (_changed(latency_ms=float("nan")), "test_numbers_are_possible"),
        (_changed(latency_ms=1.0), "test_segments_lie_inside_the_inference"),
        (_changed(samples_ms=(1.0,)), "test_numbers_are_possible"),
        (_changed(frame_drop_rate=None), "test_frames_are_dropped_only_where_there_is_a_ui"),
        (_changed(frame_drop_rate=0.5), "test_frames_are_dropped_only_where_there_is_a_ui"),
        (lambda plan, condition: Measurement.failed(Failure.LOST, "gone"), "test_answers_with_numbers_or_an_error"),
    ],
)
def test_the_suite_finds_defects(answer: Callable[[Plan, Condition], Measurement], test: str) -> None:
    device = MockDevice(D1.spec, GRAPH, answer)
    with pytest.raises(AssertionError):
        getattr(DeviceConformance(), test)(device, whole_model_plans(D1))


def test_the_suite_finds_a_device_that_takes_any_plan() -> None:
    class Careless(MockDevice):
        def measure(self, plan: Plan, condition: Condition) -> Measurement:
            return D1.measure(whole_model_plans(D1)[0], condition)

    device = Careless(D1.spec, GRAPH, D1.measure)
    for name in ("another_model", "that_leaves_out_a_node", "an_unknown_processor"):
        test = next(
            getattr(DeviceConformance(), t) for t in dir(DeviceConformance) if t.startswith("test") and name in t
        )
        with pytest.raises(pytest.fail.Exception):
            test(device, whole_model_plans(D1))


def test_only_the_suite_needs_pytest() -> None:
    code = "import sys, hetrl.api, hetrl.cli.main, hetrl.testing.models; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
