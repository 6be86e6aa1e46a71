"""Outcomes of complete decision sequences on a device: in one batch on a surrogate, one by one on anything else."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from hetrl.accuracy import predicted_accuracy_drop_pct
from hetrl.condition import Condition
from hetrl.device_bridge.base import Device
from hetrl.device_bridge.surrogate.cost_model import Schedules
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.space import PlanSpace
from hetrl.measurement import Measurement

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Outcomes:
    """One entry per plan; NaN where there is no number (a failed measurement, no UI, no energy)."""

    latency_ms: Floats
    accuracy_drop_pct: Floats
    frame_drop_rate: Floats
    peak_memory_mb: Floats
    energy_mj: Floats

    @staticmethod
    def empty(size: int) -> Outcomes:
        return Outcomes(*(np.full(size, np.nan) for _ in fields(Outcomes)))

    def put(self, where: Ints, other: Outcomes) -> None:
        """Overwrite the entries at `where`."""
        for field in fields(Outcomes):
            getattr(self, field.name)[where] = getattr(other, field.name)

    def at(self, index: int) -> tuple[float, ...]:
        return tuple(float(getattr(self, field.name)[index]) for field in fields(Outcomes))


def evaluate(space: PlanSpace, device: Device, condition: Condition, taken: Ints) -> Outcomes:
    """Outcomes of (length, B) complete decisions on `device`."""
    if device is space.device:
        return _on_surrogate(space, space.device, condition, taken)
    plans = [space.plan(taken[:, b]) for b in range(taken.shape[1])]
    measured = device.measure_many(plans, condition)
    return of_measurements(measured, [p.compression.prune_ratio for p in plans])


def of_measurements(measured: list[Measurement], prune_ratios: list[float]) -> Outcomes:
    """Measurements as arrays, with the predicted accuracy of each plan's compression."""

    def numbers(name: str) -> Floats:
        values = [getattr(m, name) for m in measured]
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

    return Outcomes(
        latency_ms=numbers("latency_ms"),
        accuracy_drop_pct=np.array([predicted_accuracy_drop_pct(r) for r in prune_ratios]),
        frame_drop_rate=numbers("frame_drop_rate"),
        peak_memory_mb=numbers("peak_memory_mb"),
        energy_mj=numbers("energy_mj"),
    )


def _on_surrogate(space: PlanSpace, device: SurrogateDevice, condition: Condition, taken: Ints) -> Outcomes:
    batch, prune = space.schedules(taken)
    outcomes = Outcomes.empty(taken.shape[1])
    for index in np.unique(prune):
        where = np.flatnonzero(prune == index)
        ratio = space.prune_ratios[int(index)]
        answers = device.cost_model(ratio).evaluate(_columns(batch, where), condition.ui)
        fits = np.isfinite(answers.latency_ms) & (answers.peak_memory_mb <= device.memory_limit_mb)

        def known(values: Floats, fits: npt.NDArray[np.bool_] = fits) -> Floats:
            return np.where(fits, values, np.nan)

        outcomes.put(
            where,
            Outcomes(
                latency_ms=known(answers.latency_ms),
                accuracy_drop_pct=np.full(len(where), predicted_accuracy_drop_pct(ratio)),
                frame_drop_rate=known(answers.frame_drop_rate),
                peak_memory_mb=known(answers.peak_memory_mb),
                energy_mj=known(answers.energy_mj),
            ),
        )
    return outcomes


def _columns(batch: Schedules, where: Ints) -> Schedules:
    return Schedules(*(getattr(batch, field.name)[..., where] for field in fields(Schedules)))
