"""A phone on which plans are measured with ncnn's own benchmark program."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import msgspec

from hetrl.condition import Condition
from hetrl.device_bridge.adb.adb import Adb
from hetrl.device_bridge.adb.benchncnn import Benchncnn, NcnnModel
from hetrl.device_bridge.adb.frames import frame_stats, reset_frames
from hetrl.device_bridge.base import Device, DeviceInfo, check_fits, describe_spec
from hetrl.device_bridge.channel import ChannelLost
from hetrl.device_bridge.spec import DeviceSpec
from hetrl.errors import HetrlError, UsageError
from hetrl.graph import OperatorGraph
from hetrl.measurement import Failure, Measurement, MeasurementError
from hetrl.plan import Evidence, Plan

STATES = ("cold", "sigma0")  # what a phone that is left alone between two runs is in
SURE_SAMPLES = 5  # the median lies between the smallest and the largest of n with a chance of 1 - 2^(1-n), here 94 %


Convert = Callable[[Plan], NcnnModel]  # raises a HetrlError for a plan that no `.param` file expresses


class Protocol(msgspec.Struct, frozen=True):
    """How often, and with which pauses.

    :param runs: of the program; each gives one sample.
    :param pause_s: before each run, so that the phone cools down.
    :param app: package whose frames are watched meanwhile.
    """

    runs: int = SURE_SAMPLES
    pause_s: float = 5.0
    app: str | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.runs <= 1000 and 0 <= self.pause_s <= 3600):
            raise UsageError(f"{self.runs} runs with pauses of {self.pause_s:g} s make no sense", "try 5 runs and 5 s")


class AdbDevice(Device):
    """One phone with one model loaded.

    :param spec: what is believed of the phone, with an engine set of ncnn.
    :param convert: a plan as a `.param`.
    """

    def __init__(
        self,
        spec: DeviceSpec,
        graph: OperatorGraph,
        engine_name: str,
        adb: Adb,
        bench: Benchncnn,
        convert: Convert,
        protocol: Protocol | None = None,
    ) -> None:
        self.spec = spec
        self.graph = graph
        self.engine_name = engine_name
        self.reconnects = 0  # how often a phone that was lost came back
        self._adb = adb
        self._bench = bench
        self._convert = convert
        self._protocol = protocol or Protocol()

    def describe(self) -> DeviceInfo:
        return describe_spec(
            self.spec, self.engine_name, f"{self._adb.serial} over adb, with benchncnn", deterministic=False
        )

    def measure(self, plan: Plan, condition: Condition) -> Measurement:
        check_fits(plan, self)
        reason = self._refusal(plan, condition)
        if reason:
            return Measurement.failed(Failure.UNSUPPORTED, reason)
        try:
            model = self._convert(plan)
        except HetrlError as error:
            return Measurement.failed(Failure.UNSUPPORTED, str(error))
        answer = self._measure(model)
        if answer.error is not None and answer.error.kind is Failure.LOST and self._came_back():
            answer = self._measure(model)
        return answer

    @property
    def notes(self) -> tuple[str, ...]:
        lost = f"the phone was lost and came back {self.reconnects} times; what it was busy with was measured again"
        return (lost,) if self.reconnects else ()

    def _refusal(self, plan: Plan, condition: Condition) -> str | None:
        """Why the program cannot measure this at all."""
        shaped = (condition.competitors, condition.cache_hit, condition.suspended) != (0, None, None)
        if condition.state not in STATES or shaped:
            return f"a phone cannot be put into the condition {condition}; measure under {STATES[0]}"
        if plan.capped or plan.queue_window is not None or plan.kernel_slice_ms is not None:
            return "benchncnn has no caps, queue windows or kernel slices"
        if plan.overlap:
            return "benchncnn runs layers one after the other"
        return None

    def _measure(self, model: NcnnModel) -> Measurement:
        samples: list[float] = []
        app, drops = self._protocol.app, None
        try:
            if app is not None and not reset_frames(self._adb, app):
                return Measurement.failed(
                    Failure.UNSUPPORTED, f"{app} does not run on {self._adb.serial}; start it there"
                )
            for _ in range(self._protocol.runs):
                time.sleep(self._protocol.pause_s)
                answer = self._bench.run(model)
                if isinstance(answer, MeasurementError):
                    return Measurement(evidence=Evidence.MEASURED, error=answer)
                samples.append(answer.avg_ms)
            if app is not None:
                stats = frame_stats(self._adb, app)
                if stats is None:
                    return Measurement.failed(Failure.CRASHED, f"{app} ended on {self._adb.serial}; start it again")
                drops = stats.drop_rate
        except ChannelLost as error:
            return Measurement.failed(Failure.LOST, str(error))
        return Measurement(
            evidence=Evidence.MEASURED,
            latency_ms=statistics.median(samples),
            latency_interval_ms=(min(samples), max(samples)) if len(samples) >= SURE_SAMPLES else None,
            samples_ms=tuple(samples),
            frame_drop_rate=drops,
        )

    def _came_back(self) -> bool:
        try:
            self._adb.reconnect()
        except ChannelLost:
            return False
        self.reconnects += 1
        return True
