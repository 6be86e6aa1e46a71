"""Fit of the effects of heat, cache and suspension to the study's Table 3 (24 latencies under shifted conditions).

    sigma1, sigma2   T = T_cold * F^gamma     gamma 1 for the GPU alone; CPU and GPU together draw and throttle more
    sigma3           T = T_sigma0 * (1 + a * g)             g 1 for the GPU alone; the CPU lives from its cache
    sigma4           T = T_sigma0 / 2 + K * T_cpu / 2 + tau * operators

Six numbers are fitted (F60, F70, gamma, a, g, K); tau is assumed. `T_cold` and `T_cpu` are CoDL's measurements on d1
where there are any (locked clocks), else the surrogate's answers; `T_sigma0` is the profile that Table 3 starts from.
`F30`, the heat that a phone has already at sigma0, is fitted to the column sigma0; the surrogate needs it, the 24
cells do not.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

from hetrl.agents.policies.codl_rule import codl_schedule
from hetrl.calibration.mace import MEASURED_PHONE, tables_of_rows
from hetrl.calibration.rows import cells, workload_of_rows
from hetrl.device_bridge.spec import Engine
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule, batch_of
from hetrl.errors import MissingExtra
from hetrl.plan import Memory

Floats = npt.NDArray[np.float64]
TAU_MS = 0.8  # suspending one operator and moving its data (assumed)
NAMES = ("heat_60", "heat_70", "gamma", "cache_slope", "cache_shared", "fallback_slowdown")
START = (1.2, 1.4, 1.5, 0.3, 2.0, 2.0)  # one and two DVFS steps of the Adreno 640 (585/499, 585/427 MHz), then guesses


@dataclass(frozen=True)
class Profile:
    """One model and method of Table 3, with what the surrogate knows of it.

    :param measured_ms: sigma0 to sigma4.
    :param shared: whether CPU and GPU work together.
    """

    model: str
    shared: bool
    measured_ms: tuple[float, ...]
    cold_ms: float
    cpu_ms: float
    operators: int


def profiles(engine: Engine) -> tuple[Profile, ...]:
    """The six rows of Table 3; `engine` is d1's `mace` engine set."""
    with (resources.files("hetrl.data") / "study_conditions.csv").open(encoding="utf-8") as file:
        return tuple(_profile(row, engine) for row in csv.DictReader(file))


def _profile(row: dict[str, str], engine: Engine) -> Profile:
    model, shared = row["model"], row["method"].startswith("codl")
    cost = CostModel(tables_of_rows(model, engine), idle_w=0.0)
    count = len(workload_of_rows(model).items)

    def latency_ms(schedule: Schedule) -> float:
        return float(cost.evaluate(batch_of([schedule], count, len(engine.processors)), ui=None).latency_ms[0])

    def alone(unit: str) -> float:
        processor = [p.unit for p in engine.processors].index(unit)
        return latency_ms(Schedule((Placed(0, count - 1, processor, Memory.IMAGE),)))

    known = {c.strategy: c.latency_ms for c in cells() if (c.device, c.model) == (MEASURED_PHONE, model)}
    cold = latency_ms(codl_schedule(cost, Memory.IMAGE)) if shared else alone("gpu")
    return Profile(
        model=model,
        shared=shared,
        measured_ms=tuple(float(row[f"sigma{i}_ms"]) for i in range(5)),
        cold_ms=known.get("codl_image" if shared else "mace_gpu", cold),
        cpu_ms=known.get("mace_cpu", alone("cpu")),
        operators=count,
    )


def predict_ms(values: Floats, profile: Profile) -> Floats:
    """sigma1 to sigma4 of a profile, under fitted `values` in the order of `NAMES`."""
    heat_60, heat_70, gamma, slope, with_cpu, slowdown = values
    power = gamma if profile.shared else 1.0
    sensitivity = with_cpu if profile.shared else 1.0
    offline = profile.measured_ms[0]
    suspended = 0.5 * offline + 0.5 * slowdown * profile.cpu_ms + TAU_MS * profile.operators
    return np.array(
        [
            profile.cold_ms * heat_60**power,
            profile.cold_ms * heat_70**power,
            offline * (1 + slope * sensitivity),
            suspended,
        ]
    )


def fit(train: Sequence[Profile]) -> Floats:
    """The six numbers, by least squares on logarithms."""
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise MissingExtra("calibration", "calibrate") from None

    def residuals(x: Floats) -> Floats:
        errors = [np.log(predict_ms(np.exp(x), p) / np.array(p.measured_ms[1:])) for p in train]
        return np.concatenate([*errors, 0.02 * (x - np.log(START))])  # the last ones only keep unseen numbers finite

    solved: Floats = np.exp(least_squares(residuals, np.log(START), loss="soft_l1", f_scale=0.1).x)
    return solved


def errors(values: Floats, rows: Iterable[Profile]) -> Floats:
    """(rows, 4) relative errors of sigma1 to sigma4."""
    return np.array([predict_ms(values, p) / np.array(p.measured_ms[1:]) - 1 for p in rows])


def leave_one_model_out(rows: Sequence[Profile]) -> tuple[tuple[Profile, Floats], ...]:
    """Each row with its four errors under a fit that saw the other models alone."""
    found = []
    for model in dict.fromkeys(p.model for p in rows):
        values = fit([p for p in rows if p.model != model])
        found += [(p, errors(values, [p])[0]) for p in rows if p.model == model]
    return tuple(found)


def offline_heat(rows: Sequence[Profile], gamma: float) -> float:
    """F30: how warm the phone is at sigma0 already, as the factor on a GPU alone."""
    logs = [np.log(p.measured_ms[0] / p.cold_ms) / (gamma if p.shared else 1.0) for p in rows]
    return float(np.exp(np.mean(logs)))
