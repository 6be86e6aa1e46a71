"""Numbers of phones that nobody measured, from the nearest silicon that somebody did.

    CPU ms_per_gmac   MACE splits work evenly over four threads, so it waits for the slowest of the four big cores:
                      inversely to that core's clock and CoreMark per MHz. Cortex-A73: nobody measured CoreMark; its
                      slow-down against A76 is the mean of measured pairs (`scaling_pairs.csv`).
    GPU ms_per_gmac   the same GPU at another clock: inversely to the clock. Another of the family: inversely to its
                      nominal arithmetic to a power that measured pairs give (about 0.3: measured latencies are nearly
                      flat from Adreno 640 to 660 although the nominal peak doubles).
    ms_per_mb         inversely to the square root of memory bandwidth: caches serve part of the traffic, and the four
                      measured phones show a power of about 0.5. Dense weights: inversely to the bandwidth itself.
    the others        unchanged; of several nearest phones the geometric mean.

What a rule is worth is seen by predicting each measured phone from the others (`uncertainty`).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from hetrl.calibration.fit import Fit, engine_of
from hetrl.calibration.mace import NUMBERS, mace_engine
from hetrl.calibration.phones import Phone, phones
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import Engine

TRAFFIC_POWER = 0.5


@dataclass(frozen=True)
class Nearest:
    """Phones that a phone's CPU and GPU are scaled from; no GPU where no measured phone has one of the family."""

    cpu: tuple[str, ...]
    gpu: tuple[str, ...]


NEAREST = {
    "d2": Nearest(("d1", "d5"), ("d5",)),  # A76 and Mali-G77
    "d6": Nearest(("d1", "d5"), ("d5",)),  # A73 and Mali-G71
    "d7": Nearest(("d3",), ("d3",)),  # the silicon of d3
    "d8": Nearest(("d1", "d5"), ("d5",)),  # its slowest big cores are A76; Mali-G78
}
# What each measured phone would be scaled from if it were none.
STAND_IN = {
    "d1": Nearest(("d5",), ("d3", "d4")),
    "d3": Nearest(("d1", "d4"), ("d1", "d4")),
    "d4": Nearest(("d3",), ("d1", "d3")),
    "d5": Nearest(("d1",), ()),
}


@cache
def _pairs(unit: str) -> tuple[tuple[float, float, float], ...]:
    """(from_speed, to_speed, time_ratio) of measured pairs of silicon."""
    with (resources.files("hetrl.data") / "scaling_pairs.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["unit"] == unit]
    return tuple((float(r["from_speed"]), float(r["to_speed"]), float(r["time_ratio"])) for r in rows)


@cache
def gpu_power() -> float:
    """Power of nominal arithmetic that GPU time goes inversely with: least squares through the origin."""
    speed, time = np.array([(np.log(a / b), np.log(t)) for a, b, t in _pairs("gpu")]).T
    return float((speed @ time) / (speed @ speed))


@cache
def gpu_rule_spread() -> float:
    """Standard deviation of ln time around the GPU rule, over the measured pairs."""
    left = [np.log(t) - gpu_power() * np.log(a / b) for a, b, t in _pairs("gpu")]
    return float(np.sqrt(np.square(left).sum() / (len(left) - 1)))


@cache
def a73_slowdown() -> float:
    """How much longer four A73 take than four A76 at the same clock: geometric mean of the pairs."""
    return float(np.exp(np.mean(_a73_logs())))


def a73_spread() -> float:
    """Standard deviation of its logarithm over the pairs."""
    return float(np.std(_a73_logs(), ddof=1))


def _a73_logs() -> list[float]:
    return [float(np.log(t * b / a)) for a, b, t in _pairs("cpu_a73")]


def scaled_engine(fit: Fit, phone: str, nearest: Nearest) -> Engine:
    """The `mace` engine set of a phone from its nearest measured ones.

    Without a GPU to scale from, the phone's own fit gives the GPU: only its CPU is then scaled.
    """
    numbers = {}
    for name in NUMBERS:
        sources = nearest.cpu if name.startswith("cpu_") else nearest.gpu
        if sources:
            numbers[name] = _scaled(fit, phone, name, sources)
        else:
            numbers[name] = Quantity(fit.value(phone, name), Source.FITTED, "its own rows")
    return mace_engine(phone, numbers)


def _scaled(fit: Fit, phone: str, name: str, sources: tuple[str, ...]) -> Quantity:
    factor, rule = _RULES.get(name, (_unchanged, "unchanged"))
    here = phones()[phone]
    logs = [np.log(fit.value(s, name) * factor(phones()[s], here)) for s in sources]
    origin = " and ".join(sources) + (" (geometric mean)" if len(sources) > 1 else "")
    return Quantity(float(np.exp(np.mean(logs))), Source.SCALED, f"from {origin}: {rule}")


def _unchanged(_there: Phone, _here: Phone) -> float:
    return 1.0


def _cpu_speed(phone: Phone) -> float:
    core, a76 = phone.slow_big_core, phones()["d1"].slow_big_core
    assert a76.coremark_per_mhz is not None  # measured
    if core.coremark_per_mhz is None:
        return core.max_ghz * a76.coremark_per_mhz.value / a73_slowdown()
    return core.max_ghz * core.coremark_per_mhz.value


def _cpu_work(there: Phone, here: Phone) -> float:
    return _cpu_speed(there) / _cpu_speed(here)


def _gpu_work(there: Phone, here: Phone) -> float:
    before, after = there.hardware.gpu, here.hardware.gpu
    if before.name == after.name:
        return before.max_mhz.value / after.max_mhz.value
    return float((before.peak_gflops.value / after.peak_gflops.value) ** gpu_power())


def _traffic(there: Phone, here: Phone) -> float:
    return float((there.memory_gbps / here.memory_gbps) ** TRAFFIC_POWER)


def _bandwidth(there: Phone, here: Phone) -> float:
    return there.memory_gbps / here.memory_gbps


_RULES: Mapping[str, tuple[Callable[[Phone, Phone], float], str]] = {
    "cpu_ms_per_gmac": (_cpu_work, "by clock and CoreMark per MHz of the slowest of four big cores"),
    "cpu_ms_per_mb": (_traffic, "by the square root of memory bandwidth"),
    "gpu_ms_per_gmac": (_gpu_work, f"the same GPU by clock, another by nominal GFLOPS to the power {gpu_power():.2f}"),
    "gpu_ms_per_mb": (_traffic, "by the square root of memory bandwidth"),
    "gpu_dense_ms_per_mb": (_bandwidth, "by memory bandwidth"),
}


def engine_for(fit: Fit, phone: str) -> Engine:
    """The `mace` engine set of any of the eight phones."""
    return scaled_engine(fit, phone, NEAREST[phone]) if phone in NEAREST else engine_of(fit, phone)
