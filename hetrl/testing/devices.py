"""What every device must do, as tests: subclass `DeviceConformance` in a test module, and give it a device.

    class TestMyDevice(DeviceConformance):
        @pytest.fixture
        def device(self):
            with MyDevice(...) as device:
                yield device

The `plans` fixture may be overridden too; by default the whole model runs on each processor in turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import msgspec
import pytest

from hetrl.condition import Condition, Ui
from hetrl.device_bridge.base import Device
from hetrl.errors import PlanError
from hetrl.measurement import Measurement
from hetrl.plan import MadeBy, Part, Plan, Segment
from hetrl.plan_check import model_ref

WITH_UI = Condition(ui=Ui())
WITHOUT_UI = Condition(ui=None)
TOLERANCE = 1e-6  # of a latency, for sums taken in another order


def whole_model_plans(device: Device) -> list[Plan]:
    """For each processor, the plan that gives it everything."""
    graph, engine = device.graph, device.spec.engine(device.engine_name)
    nodes = tuple(node for group in graph.groups for node in graph.group_node_ids(group.index))
    return [
        Plan(
            model=model_ref(graph),
            device=device.spec.id,
            engines=engine.engines,
            segments=(Segment(nodes=nodes, parts=(Part(p.id),), memory=p.memory[0] if p.memory else None),),
            made_by=MadeBy(method="conformance"),
        )
        for p in engine.processors
    ]


class DeviceConformance:
    """See the module's text. A failed measurement is an answer; at least one plan must be answered with numbers."""

    @pytest.fixture
    def device(self) -> Device:
        raise NotImplementedError("override the fixture `device`")

    @pytest.fixture
    def plans(self, device: Device) -> Sequence[Plan]:
        return whole_model_plans(device)

    def test_describes_itself(self, device: Device) -> None:
        info = device.describe()
        assert info == device.describe()
        assert info.id and info.description
        assert device.engine_name in info.engines
        known = {p.id for engine in info.engines for p in device.spec.engine(engine).processors}
        assert info.processors and set(info.processors) <= known
        assert len(set(info.processors)) == len(info.processors)

    def test_answers_with_numbers_or_an_error(self, device: Device, plans: Sequence[Plan]) -> None:
        answers = [device.measure(plan, condition) for plan in plans for condition in (WITH_UI, WITHOUT_UI)]
        for measured in answers:
            assert isinstance(measured, Measurement)
            assert measured.ok == (measured.latency_ms is not None)
            if measured.error is not None:
                assert measured.error.message
                numbers = (measured.peak_memory_mb, measured.energy_mj, measured.frame_drop_rate)
                assert numbers == (None, None, None) and not measured.samples_ms and not measured.segments
        assert any(measured.ok for measured in answers), "no plan was answered with numbers"

    def test_numbers_are_possible(self, device: Device, plans: Sequence[Plan]) -> None:
        for plan, measured in _answered(device, plans, WITH_UI):
            latency = measured.latency_ms
            assert latency is not None and math.isfinite(latency) and latency > 0
            assert all(math.isfinite(s) and s > 0 for s in measured.samples_ms)
            if measured.samples_ms:
                assert math.isclose(latency, median(measured.samples_ms), rel_tol=TOLERANCE)
            if measured.latency_interval_ms is not None:
                low, high = measured.latency_interval_ms
                assert 0 <= low <= latency <= high
            for number in (measured.peak_memory_mb, measured.energy_mj):
                assert number is None or (math.isfinite(number) and number > 0)
            busy = {u.processor: u.busy for u in measured.utilization}
            assert len(busy) == len(measured.utilization) and set(busy) <= set(device.describe().processors)
            assert all(0 <= share <= 1 + TOLERANCE for share in busy.values())
            assert {f.node for f in measured.fallbacks} <= {n for s in plan.segments for n in s.nodes}
            assert all(f.reason and math.isfinite(f.cost_ms) and f.cost_ms >= 0 for f in measured.fallbacks)

    def test_segments_lie_inside_the_inference(self, device: Device, plans: Sequence[Plan]) -> None:
        for _, measured in _answered(device, plans, WITH_UI):
            latency = measured.latency_ms or 0.0
            starts = [s.start_ms for s in measured.segments]
            assert starts == sorted(starts)
            for segment in measured.segments:
                assert segment.id and set(segment.processors) <= set(device.describe().processors)
                assert -TOLERANCE <= segment.start_ms <= segment.end_ms <= latency * (1 + TOLERANCE)
                assert 0 <= segment.transfer_ms <= latency * (1 + TOLERANCE)

    def test_frames_are_dropped_only_where_there_is_a_ui(self, device: Device, plans: Sequence[Plan]) -> None:
        for _, measured in _answered(device, plans, WITHOUT_UI):
            assert measured.frame_drop_rate is None
        for _, measured in _answered(device, plans, WITH_UI):
            assert measured.frame_drop_rate is not None and 0 <= measured.frame_drop_rate <= 1

    def test_a_deterministic_device_repeats_itself(self, device: Device, plans: Sequence[Plan]) -> None:
        again = [device.measure(plan, WITH_UI) for plan in plans]
        if device.describe().deterministic:
            assert again == [device.measure(plan, WITH_UI) for plan in plans]

    def test_many_plans_are_answered_as_one_by_one(self, device: Device, plans: Sequence[Plan]) -> None:
        many = device.measure_many(plans, WITH_UI)
        assert len(many) == len(plans)
        if device.describe().deterministic:
            assert many == [device.measure(plan, WITH_UI) for plan in plans]
        assert device.measure_many([], WITH_UI) == []

    def test_a_plan_for_another_model_is_the_callers_mistake(self, device: Device, plans: Sequence[Plan]) -> None:
        other = msgspec.structs.replace(plans[0].model, structure_sha256="0" * 64)
        _refused(device, msgspec.structs.replace(plans[0], model=other), "model.structure_sha256")

    def test_a_plan_that_leaves_out_a_node_is_the_callers_mistake(self, device: Device, plans: Sequence[Plan]) -> None:
        last = plans[0].segments[-1]
        fewer = tuple(s for s in plans[0].segments if s is not last)
        if len(last.nodes) > 1:
            fewer = (*fewer, msgspec.structs.replace(last, nodes=last.nodes[:-1]))
        if fewer:
            _refused(device, msgspec.structs.replace(plans[0], segments=fewer), "segments")

    def test_an_unknown_processor_is_the_callers_mistake(self, device: Device, plans: Sequence[Plan]) -> None:
        nowhere = (Part(f"abacus/{plans[0].engines[0]}/fp32"),)
        first = Segment(nodes=plans[0].segments[0].nodes, parts=nowhere)
        _refused(device, msgspec.structs.replace(plans[0], segments=(first, *plans[0].segments[1:])), "segments[0]")

    def test_closes_twice_and_is_a_context_manager(self, device: Device) -> None:
        with device as same:
            assert same is device
        device.close()
        device.close()


def _answered(device: Device, plans: Sequence[Plan], condition: Condition) -> list[tuple[Plan, Measurement]]:
    answers = [(plan, device.measure(plan, condition)) for plan in plans]
    return [(plan, measured) for plan, measured in answers if measured.ok]


def _refused(device: Device, plan: Plan, field: str) -> None:
    with pytest.raises(PlanError) as caught:
        device.measure(plan, WITH_UI)
    assert caught.value.field.startswith(field)
