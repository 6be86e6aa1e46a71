"""What a device says of a plan: numbers, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from statistics import median

import msgspec

from hetrl.plan import Evidence


class Failure(StrEnum):
    """Why a measurement has no numbers."""

    TIMEOUT = "timeout"
    LOST = "lost"  # the device went away
    CRASHED = "crashed"  # the runner died
    OUT_OF_MEMORY = "out_of_memory"
    NO_SPACE = "no_space"  # the plan's files do not fit on the device's disk
    UNSUPPORTED = "unsupported"  # the device cannot run this plan
    WRONG_OUTPUT = "wrong_output"
    UNKNOWN_PLAN = "unknown_plan"  # a replay that never saw it


class MeasurementError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why there are no numbers.

    :param output_error: of a wrong output, as in `Measurement`, where it is a number.
    """

    kind: Failure
    message: str
    output_error: float | None = None


class SegmentTiming(msgspec.Struct, frozen=True):
    """When a segment ran: from `start_ms` to `end_ms` of one inference, `transfer_ms` of it moving data."""

    id: str
    processors: tuple[str, ...]
    start_ms: float
    end_ms: float
    transfer_ms: float


class Fallback(msgspec.Struct, frozen=True):
    """An operator that did not run where the plan put it."""

    node: str
    reason: str
    cost_ms: float


class Utilization(msgspec.Struct, frozen=True):
    """Share of the time (0 to 1) that `processor` was busy."""

    processor: str
    busy: float


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One plan under one condition.

    :param latency_ms: steady-state time per inference, idle time of caps included: the median of `samples_ms`.
    :param latency_interval_ms: 90 % interval of `latency_ms`, None where it is not known.
    :param frame_drop_rate: fraction of UI frames dropped, None without a UI.
    :param output_error: largest difference to the whole model's output over its largest value; None where the plan
        was not really run.
    :param foreign_load: whether other programs took so much of the machine that the numbers may be too high.
    :param error: set exactly when there are no numbers.
    """

    evidence: Evidence
    latency_ms: float | None = None
    latency_interval_ms: tuple[float, float] | None = None
    samples_ms: tuple[float, ...] = ()
    peak_memory_mb: float | None = None
    energy_mj: float | None = None
    frame_drop_rate: float | None = None
    output_error: float | None = None
    foreign_load: bool = False
    utilization: tuple[Utilization, ...] = ()
    segments: tuple[SegmentTiming, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    error: MeasurementError | None = None

    def __post_init__(self) -> None:
        if (self.error is None) == (self.latency_ms is None):
            raise ValueError("a measurement has either a latency or an error")

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def off_by(self) -> float | None:
        """`output_error`, also of a plan that failed for it."""
        return self.output_error if self.error is None else self.error.output_error

    @staticmethod
    def failed(kind: Failure, message: str, evidence: Evidence = Evidence.MEASURED) -> Measurement:
        """A measurement that did not come about."""
        return Measurement.of_error(MeasurementError(kind, message), evidence)

    @staticmethod
    def of_error(error: MeasurementError, evidence: Evidence = Evidence.MEASURED) -> Measurement:
        """A measurement that did not come about, for a reason that is a value already."""
        return Measurement(evidence=evidence, error=error)


def pooled(measurements: Sequence[Measurement]) -> Measurement:
    """Several measurements of one plan under one condition as one: failures count only if there is nothing else.

    Latency is the median of all samples. Its interval is not known: samples of one measurement are not independent.
    Timeline and utilization are those of the measurement whose latency is nearest.
    """
    sound = [m for m in measurements if m.ok]
    if len(sound) < 2:
        return (sound or measurements)[-1]
    samples = tuple(sample for m in sound for sample in m.samples_ms or (m.latency_ms or 0.0,))
    latency_ms = median(samples)
    energies = [m.energy_mj for m in sound if m.energy_mj is not None]
    memories = [m.peak_memory_mb for m in sound if m.peak_memory_mb is not None]
    drops = [m.frame_drop_rate for m in sound if m.frame_drop_rate is not None]
    errors = [m.output_error for m in sound if m.output_error is not None]
    return msgspec.structs.replace(
        min(sound, key=lambda m: abs((m.latency_ms or 0.0) - latency_ms)),
        latency_ms=latency_ms,
        latency_interval_ms=None,
        samples_ms=samples,
        energy_mj=median(energies) if energies else None,
        peak_memory_mb=max(memories, default=None),
        frame_drop_rate=sum(drops) / len(drops) if drops else None,
        output_error=max(errors, default=None),
        foreign_load=any(m.foreign_load for m in sound),
    )
