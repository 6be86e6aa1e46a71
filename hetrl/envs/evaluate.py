"""Outcomes of complete decision sequences on a device: in one batch on a surrogate, one by one on anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hetrl.condition import Condition
from hetrl.device_bridge.base import Device
from hetrl.device_bridge.surrogate.accelerate import Totals, totals
from hetrl.device_bridge.surrogate.cost_model import Schedules
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.space import PlanSpace
from hetrl.errors import DeviceFailed
from hetrl.measurement import Failure, Measurement

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_PART = 1000  # plans at a time: fresh memory costs more than work on it


@dataclass(frozen=True)
class Outcomes:
    """One entry per plan; NaN where there is no number (a failed measurement, no UI, no energy).

    :param segment_ms: (B, groups) how long each segment took, at its last fusion group; 0 elsewhere.
    """

    latency_ms: Floats
    accuracy_drop_pct: Floats
    frame_drop_rate: Floats
    peak_memory_mb: Floats
    energy_mj: Floats
    segment_ms: Floats

    @staticmethod
    def empty(size: int, groups: int) -> Outcomes:
        latency, accuracy, frames, memory, energy = (np.full(size, np.nan) for _ in range(5))
        return Outcomes(latency, accuracy, frames, memory, energy, np.full((size, groups), np.nan))

    def set(self, index: int, numbers: Sequence[float]) -> None:
        """Overwrite the numbers of one plan, in the order that `at` gives them."""
        for field, number in zip(fields(Outcomes)[:-1], numbers, strict=True):
            getattr(self, field.name)[index] = number

    def at(self, index: int) -> tuple[float, ...]:
        """The numbers of one plan, in the order of the fields, `segment_ms` left out."""
        return tuple(float(getattr(self, field.name)[index]) for field in fields(Outcomes)[:-1])


def evaluate(space: PlanSpace, device: Device, condition: Condition, taken: Ints) -> Outcomes:
    """Outcomes of (length, B) complete decisions on `device`.

    :raises DeviceFailed: the device went away.
    """
    if device is space.device:
        return _on_surrogate(space, space.device, condition, taken)
    plans = [space.plan(taken[:, b]) for b in range(taken.shape[1])]
    measured = device.measure_many(plans, condition)
    for measurement in measured:
        require_present(measurement, device)
    return of_decisions(space, measured, taken)


def require_present(measurement: Measurement, device: Device) -> None:
    """
    :raises DeviceFailed: the measurement failed because the device went away: that says nothing about a plan.
    """
    error = measurement.error
    if error is not None and error.kind is Failure.LOST:
        hint = f"check its connection (hetrl doctor --device {device.spec.id}); --resume goes on where a run stopped"
        raise DeviceFailed(f"{device.spec.id} went away: {error.message}", hint)


def of_decisions(space: PlanSpace, measured: list[Measurement], taken: Ints) -> Outcomes:
    """What was measured of (length, B) complete decisions."""
    outcomes = of_measurements(measured, space.accuracy_drop_pct(*space.schedules(taken)), space.groups)
    for b, measurement in enumerate(measured):
        ends = space.segment_ends(taken[:, b])
        if len(measurement.segments) == len(ends):
            outcomes.segment_ms[b, ends] = [s.end_ms - s.start_ms for s in measurement.segments]
        elif measurement.latency_ms is not None:  # no timeline: all of it where the plan ends
            outcomes.segment_ms[b, -1] = measurement.latency_ms
    return outcomes


def of_measurements(measured: list[Measurement], accuracy_drop_pct: Floats, groups: int) -> Outcomes:
    """Measurements as arrays, with each plan's predicted accuracy drop (B,); no timeline."""

    def numbers(name: str) -> Floats:
        values = [getattr(m, name) for m in measured]
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

    return Outcomes(
        latency_ms=numbers("latency_ms"),
        accuracy_drop_pct=accuracy_drop_pct,
        frame_drop_rate=numbers("frame_drop_rate"),
        peak_memory_mb=numbers("peak_memory_mb"),
        energy_mj=numbers("energy_mj"),
        segment_ms=np.zeros((len(measured), groups)),
    )


def _on_surrogate(space: PlanSpace, device: SurrogateDevice, condition: Condition, taken: Ints) -> Outcomes:
    """In parts whose arrays are small; plans of equal compression, which share a cost model, lie side by side."""
    outcomes = Outcomes.empty(taken.shape[1], space.groups)
    order = np.argsort(taken[2], kind="stable")
    for begin in range(0, len(order), _PART):
        where = order[begin : begin + _PART]
        batch, compression = space.schedules(taken[:, where])
        outcomes.accuracy_drop_pct[where] = space.accuracy_drop_pct(batch, compression)
        found = _totals(space, device, condition, batch, compression)
        fits = np.isfinite(found.latency_ms) & (found.peak_memory_mb <= device.memory_limit_mb)
        where, known = where[fits], slice(None) if fits.all() else fits
        for field in fields(Totals):
            getattr(outcomes, field.name)[where] = getattr(found, field.name).T[known]
    return outcomes


def _totals(
    space: PlanSpace, device: SurrogateDevice, condition: Condition, batch: Schedules, compression: Ints
) -> Totals:
    """Totals of plans that are sorted by compression."""
    bounds = np.flatnonzero(np.diff(compression, prepend=-1, append=-1)).tolist()
    found = []
    for begin, end in pairwise(bounds):
        model = device.cost_model(space.compressions[int(compression[begin])], condition=condition)
        alike = Schedules(*(getattr(batch, field.name)[..., begin:end] for field in fields(Schedules)))
        found.append(totals(model, alike, condition.ui))
    if len(found) == 1:
        return found[0]
    return Totals(*(np.concatenate([getattr(t, f.name) for t in found], axis=-1) for f in fields(Totals)))
