"""The seam between hetrl and anything that can answer "how did this plan do?"."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import msgspec

from hetrl.condition import Condition, parse_condition
from hetrl.device_bridge.engine_check import check_engine
from hetrl.device_bridge.spec import DeviceSpec
from hetrl.fidelity import usual_output_error
from hetrl.graph import OperatorGraph
from hetrl.measurement import Failure, Measurement, MeasurementError
from hetrl.plan import Plan
from hetrl.plan_check import check_plan


class DeviceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is.

    :param deterministic: the same plan under the same condition always gives the same numbers.
    :param processors: ids of the processors that a plan may use.
    """

    id: str
    description: str
    engines: tuple[str, ...]
    processors: tuple[str, ...]
    deterministic: bool


class Device(ABC):
    """A device with one model loaded.

    Implementations answer with a failed `Measurement` when something goes wrong on the device; they raise
    `PlanError` only for a plan that does not fit the model or the device, which is the caller's mistake.

    `spec` and `engine_name` say what is believed of the device before anything is measured: its processors, and the
    cost model that hand policies and the exact optimum plan with.
    """

    graph: OperatorGraph
    spec: DeviceSpec
    engine_name: str

    @abstractmethod
    def describe(self) -> DeviceInfo:
        """What the device is; cheap."""

    @abstractmethod
    def measure(self, plan: Plan, condition: Condition) -> Measurement:
        """Run the plan under the condition."""

    def measure_many(self, plans: Sequence[Plan], condition: Condition) -> list[Measurement]:
        """Several plans, each as if measured alone."""
        return [self.measure(plan, condition) for plan in plans]

    def interleaves(self, condition: Condition) -> bool:
        """Whether `compare` measures in turns, so that no plan's answer is there before the others'.

        A device with a `compare` of its own has an answer of its own: a recording compares one by one where it is no.
        """
        return False

    def compare(self, plans: Sequence[Plan], condition: Condition) -> list[Measurement]:
        """Several plans that are to be told apart: in turns and longer, on a device that `interleaves`."""
        return self.measure_many(plans, condition)

    def allowing(self, max_output_error: float | None) -> Device:
        """The same device, on which a plan fails if its output is further off than this; None for the usual limit."""
        return self

    @property
    def default_condition(self) -> Condition:
        """What plans are measured under if nothing else is asked for."""
        return Condition() if self.describe().deterministic else Condition(ui=None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how measurements went, such as a connection that was lost; a sentence each."""
        return ()

    def close(self) -> None:  # noqa: B027 - most devices hold nothing
        """Let go of the device; may be called twice."""

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MockDevice(Device):
    """Answers with whatever a function says; for tests of everything that talks to devices."""

    def __init__(
        self,
        spec: DeviceSpec,
        graph: OperatorGraph,
        answer: Callable[[Plan, Condition], Measurement],
        engine_name: str | None = None,
    ) -> None:
        self.spec = spec
        self.graph = graph
        self.engine_name = engine_name or spec.default_engine
        self._answer = answer

    def describe(self) -> DeviceInfo:
        return describe_spec(self.spec, self.engine_name, "answers from a function")

    def measure(self, plan: Plan, condition: Condition) -> Measurement:
        check_fits(plan, self)
        return self._answer(plan, condition)


class ReplayDevice(Device):
    """Answers from recorded measurements; a plan that was never measured is a failed measurement that says so.

    :param records: `(plan.key, str(condition))` -> what was measured.
    :param max_output_error: a plan whose output was further off fails, as it would have on the device.
    """

    def __init__(
        self,
        spec: DeviceSpec,
        graph: OperatorGraph,
        records: Mapping[tuple[str, str], Measurement],
        engine_name: str | None = None,
        max_output_error: float | None = None,
    ) -> None:
        self.spec = spec
        self.graph = graph
        self.engine_name = engine_name or spec.default_engine
        self._records = dict(records)
        self._max_output_error = usual_output_error(graph) if max_output_error is None else max_output_error

    def allowing(self, max_output_error: float | None) -> ReplayDevice:
        return ReplayDevice(self.spec, self.graph, self._records, self.engine_name, max_output_error)

    @property
    def default_condition(self) -> Condition:
        """That of most recorded measurements."""
        counts = Counter(condition for _, condition in self._records)
        return parse_condition(counts.most_common(1)[0][0]) if counts else super().default_condition

    def describe(self) -> DeviceInfo:
        return describe_spec(self.spec, self.engine_name, f"replays {len(self._records)} measurements")

    def measure(self, plan: Plan, condition: Condition) -> Measurement:
        check_fits(plan, self)
        found = self._records.get((plan.key, str(condition)))
        if found is None:
            return Measurement.failed(Failure.UNKNOWN_PLAN, f"plan {plan.key[:12]} was not recorded under {condition}")
        if found.output_error is not None and found.output_error > self._max_output_error:
            said = f"its output is off by {found.output_error:.2g}"
            return Measurement.of_error(MeasurementError(Failure.WRONG_OUTPUT, said, found.output_error))
        return found


def record(device: Device, plans: Sequence[Plan], condition: Condition) -> ReplayDevice:
    """Measure plans once, and keep the answers as a device."""
    answers = device.measure_many(plans, condition)
    records = {(p.key, str(condition)): m for p, m in zip(plans, answers, strict=True)}
    return ReplayDevice(device.spec, device.graph, records, device.engine_name)


def check_fits(plan: Plan, device: Device) -> None:
    """Whether a plan fits a device's model and engine set.

    :raises PlanError: naming the field that does not.
    """
    check_plan(plan, device.graph)
    check_engine(plan, device.spec.engine(device.engine_name), device.spec.id)


def describe_spec(spec: DeviceSpec, engine_name: str, description: str, *, deterministic: bool = True) -> DeviceInfo:
    """What a device file says about a device that plans on one of its engine sets."""
    return DeviceInfo(
        id=spec.id,
        description=description,
        engines=(engine_name,),
        processors=tuple(p.id for p in spec.engine(engine_name).processors),
        deterministic=deterministic,
    )
