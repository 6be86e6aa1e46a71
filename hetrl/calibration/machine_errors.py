"""How well a machine's fit predicts plans, and models, that it did not see; from that, its 90 % intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

import numpy as np
from msgspec.structs import replace

from hetrl.calibration.machine import Machine
from hetrl.calibration.machine_runs import Run
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import Engine, Known
from hetrl.device_bridge.surrogate.conditions import COLD
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.intervals import SPLIT, plan_class

FIT_SHARE = 0.6  # of the plans; the others are predicted
REPEATS = 5  # random divisions into both
COVER = 0.9
LEAST_ERRORS = 10  # of a plan class of its own: below that, a 90 % quantile is the worst of a few


@dataclass(frozen=True)
class HeldOut:
    """A plan that a fit did not see.

    :param plan_class: see `surrogate.intervals`.
    """

    plan_class: str
    measured_ms: float
    predicted_ms: float

    @property
    def log_error(self) -> float:
        return abs(math.log(self.measured_ms / self.predicted_ms))

    @property
    def relative_error(self) -> float:
        return abs(self.predicted_ms / self.measured_ms - 1)


def unseen_plans(machine: Machine, seed: int = 0) -> list[HeldOut]:
    """Each time, a fit to a random 60 % of the plans of each model predicts the others; empty if they are too few."""
    keys = sorted({(run.model, run.key) for run in machine.runs})
    rng = np.random.default_rng(seed)
    found: list[HeldOut] = []
    for _ in range(REPEATS):
        kept: set[tuple[int, str]] = set()
        for _, mine in groupby(keys, key=lambda key: key[0]):
            plans = list(mine)
            kept |= {plans[i] for i in rng.permutation(len(plans))[: round(FIT_SHARE * len(plans))]}
        inside = [run for run in machine.runs if (run.model, run.key) in kept]
        outside = [run for run in machine.runs if (run.model, run.key) not in kept]
        if inside and outside:
            found += _predicted(machine, inside, outside)
    return found


def unseen_models(machine: Machine) -> list[HeldOut]:
    """Fits to all models but one predict that one; empty where there is only one."""
    models = sorted({run.model for run in machine.runs})
    found: list[HeldOut] = []
    for model in models if len(models) > 1 else ():
        inside = [run for run in machine.runs if run.model != model]
        found += _predicted(machine, inside, [run for run in machine.runs if run.model == model])
    return found


def _predicted(machine: Machine, inside: Sequence[Run], outside: Sequence[Run]) -> Iterator[HeldOut]:
    spec, engine = machine.fit(inside), machine.engine
    devices = {m: SurrogateDevice(spec, machine.graphs[m], machine.header.engine) for m in {r.model for r in outside}}
    for run in outside:
        predicted = devices[run.model].measure(run.record.plan, COLD).latency_ms
        if predicted:
            yield HeldOut(plan_class(run.record.plan, engine), run.latency_ms, predicted)


def median_error(errors: Sequence[HeldOut]) -> float | None:
    """The median of |predicted / measured - 1|."""
    return median(error.relative_error for error in errors) if errors else None


def with_errors(engine: Engine, plans: Sequence[HeldOut], models: Sequence[HeldOut]) -> Engine:
    """The engine set with interval errors of models in its fit and of others, as far as there are any."""
    noted = {
        Known.CALIBRATED: _quantiles(plans, "plans that the fit did not see"),
        Known.UNSEEN: _quantiles(models, "models that the fit did not see"),
    }
    return replace(engine, errors={known.value: found for known, found in noted.items() if found})


def _quantiles(errors: Iterable[HeldOut], of: str) -> dict[str, Quantity]:
    """Of each plan class with enough errors, and of all plans together under `split`, which other classes fall to."""
    classes: dict[str, list[float]] = {}
    for error in errors:
        classes.setdefault(error.plan_class, []).append(error.log_error)
    every = [e for found in classes.values() for e in found]
    enough = {name: found for name, found in classes.items() if len(found) >= LEAST_ERRORS}
    if every:
        enough.setdefault(SPLIT, every)
    return {
        name: Quantity(
            float(f"{_quantile(found):.4g}"), Source.FITTED, f"90 % of |ln(measured / predicted)|: {len(found)} of {of}"
        )
        for name, found in sorted(enough.items())
    }


def _quantile(values: Sequence[float]) -> float:
    """The order statistic that covers the next of exchangeable values with 90 % (split conformal prediction)."""
    rank = math.ceil(COVER * (len(values) + 1))
    return sorted(values)[min(rank, len(values)) - 1]
