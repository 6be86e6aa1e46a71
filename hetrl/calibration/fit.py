"""Fit of the `mace` engine sets to what CoDL measured on four phones.

One least-squares problem on logarithms: single-processor latencies, CoDL under both memory types, muLayer and
CoDL's "Ideal" of all phones, with priors. What a planner does depends on the numbers, so fit and plans alternate.
Rates of the phones are tied to each other (each is their mean times a deviation), special kernels are shared. The
ratios that CoDL chose per operator are weak extra evidence: where it splits at a ratio r, the GPU is r / (1 - r)
times as fast.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hetrl.calibration.linear import Parts, Rates, Slope, Walked, ideal_of, latency_of, part_table
from hetrl.calibration.mace import (
    CPU_LAUNCH_MS,
    NUMBERS,
    UNFRIENDLY_SHARE_1X1,
    mace_engine,
)
from hetrl.calibration.phones import phones
from hetrl.calibration.plans import walk
from hetrl.calibration.rows import Cell, ratios, workload_of_rows
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import Engine
from hetrl.errors import MissingExtra

Floats = npt.NDArray[np.float64]
PHONES = ("d1", "d3", "d4", "d5")
FAMILY = {phone: phones()[phone].family for phone in PHONES}
MODELS = ("yolov2", "vgg16", "posenet", "fst", "retinaface")
HEAVY_MACS = 5e7  # below this, launches and not arithmetic decide CoDL's ratio
ROUNDS = 2  # of planning and fitting; a third changes no error by more than 0.1 points
SINGLE = ("mace_cpu", "mace_gpu")


class Prior(NamedTuple):
    """Centre, spread of the logarithm, and spread among phones of one `tied` family ("" all, None not tied)."""

    value: float
    spread: float
    tie: float = 0.0
    tied: str | None = None


# Centres of the kernel factors: what MACE's kernels do (a stride-2 3x3 has no Winograd, 7x7 and 9x9 run direct). Dense
# weights stream from memory: GPUs reach 0.2 to 0.5 of its bandwidth on AlexNet, which is mostly dense layers (ncnn,
# Snapdragon 855+; nn-Meter, Adreno 640). On the CPU they cost what all traffic costs (AlexNet agrees).
PHONE_PRIOR = {
    "cpu_ms_per_gmac": Prior(19.0, 0.5, 0.15, ""),
    "cpu_ms_per_mb": Prior(0.10, 0.3, 0.15, ""),
    "gpu_ms_per_gmac": Prior(12.0, 0.7, 0.15, "adreno"),
    "gpu_ms_per_mb": Prior(0.08, 0.7, 0.20, "adreno"),
    "gpu_launch_ms": Prior(0.12, 0.7, 0.20, "adreno"),
    "unfriendly": Prior(4.0, 0.5),
}
FAMILY_PRIOR = {"gpu_1x1": Prior(0.9, 0.3), "gpu_large": Prior(1.4, 0.4)}
SHARED_PRIOR = {
    "cpu_direct": Prior(1.3, 0.4),
    "cpu_stride2": Prior(5.0, 0.4),
    "gpu_dense_share": Prior(0.3, 0.3),
    "contention": Prior(0.09, 0.7),
}
# Spread of a cell's logarithm around the model: what digitising and unmodelled effects leave.
CELL_SPREAD = {"mace_cpu": 0.04, "mace_gpu": 0.04, "ideal": 0.06, "codl": 0.08, "mulayer": 0.10, "codl_other": 0.12}
MALI_GPU_SPREAD = 0.10  # one phone, whose CPU and GPU labels are only probable
RATIO_SPREAD = 1.0

Key = tuple[str, str]  # owner (a phone, a GPU family, or "" for all) and name
PRIORS: dict[Key, Prior] = {
    **{(phone, name): prior for phone in PHONES for name, prior in PHONE_PRIOR.items()},
    **{(family, name): prior for family in ("adreno", "mali") for name, prior in FAMILY_PRIOR.items()},
    **{("", name): prior for name, prior in SHARED_PRIOR.items()},
}
INDEX = {key: i for i, key in enumerate(PRIORS)}
CENTRE = np.log([prior.value for prior in PRIORS.values()])
SPREAD = np.array([prior.spread for prior in PRIORS.values()])


def strategy_class(cell: Cell) -> str:
    """The cell's strategy as errors are told apart: CoDL under the GPU's memory type, and under the `other` one."""
    if not cell.strategy.startswith("codl_"):
        return cell.strategy
    return "codl" if cell.strategy == f"codl_{phones()[cell.device].friendly.value}" else "codl_other"


@dataclass(frozen=True)
class Fit:
    """Fitted numbers by owner and name."""

    numbers: Mapping[Key, float]

    def value(self, phone: str, name: str) -> float:
        """A number of `NUMBERS` for a measured phone."""
        if name == "gpu_dense_ms_per_mb":
            return 1 / (phones()[phone].memory_gbps * self.numbers["", "gpu_dense_share"])
        return self.numbers[self.owner(phone, name), name]

    @staticmethod
    def owner(phone: str, name: str) -> str:
        """Whose number it is: the phone's own, its GPU family's, or everybody's ("")."""
        if name in PHONE_PRIOR:
            return phone
        return FAMILY[phone] if name in FAMILY_PRIOR else ""


def engine_of(fit: Fit, phone: str) -> Engine:
    """The `mace` engine set of a measured phone under a fit."""
    return mace_engine(phone, {name: _fitted(fit, phone, name) for name in NUMBERS})


def _fitted(fit: Fit, phone: str, name: str) -> Quantity:
    note = "rows of hetrl/data/codl_latencies.csv"
    if name == "gpu_dense_ms_per_mb":
        share = fit.numbers["", "gpu_dense_share"]
        note = f"weights at {share:.2g} of {phones()[phone].memory_gbps:g} GB/s: {note}, all phones; over ms_per_mb"
    elif name in FAMILY_PRIOR:
        note += f", {FAMILY[phone]} phones"
    elif name in SHARED_PRIOR:
        note += ", all phones"
    return Quantity(fit.value(phone, name), Source.FITTED, note)


def fit_all(train: Sequence[Cell], ratio_rows: Collection[tuple[str, str]] | None = None) -> Fit:
    """Fit to cells.

    :param ratio_rows: (phone, network) pairs whose per-operator ratios may be used; all by default.
    """
    problem = _Problem(train, _ratio_rows(ratio_rows))
    x = problem.solve(CENTRE.copy(), [c for c in train if c.strategy in SINGLE], {})
    for _ in range(ROUNDS):
        fit = _unpack(x)
        x = problem.solve(x, train, walk(train, {phone: engine_of(fit, phone) for phone in PHONES}))
    return _unpack(x)


def _unpack(x: Floats) -> Fit:
    return Fit({key: float(np.exp(x[i])) for key, i in INDEX.items()})


class _RatioRows(NamedTuple):
    """Operators of a phone whose ratio is known: their parts alone, and the logarithm of CPU by GPU time."""

    phone: str
    parts: Parts
    target: Floats


@cache
def _all_ratio_rows() -> Mapping[tuple[str, str], _RatioRows]:
    positions: dict[tuple[str, str], list[int]] = {}
    shares: dict[tuple[str, str], list[float]] = {}
    for row in ratios():
        item = workload_of_rows(row.model).items[row.position]
        if item.weight_elements * item.geometry.out_h * item.geometry.out_w >= HEAVY_MACS:
            positions.setdefault((row.device, row.model), []).append(row.position)
            shares.setdefault((row.device, row.model), []).append(row.gpu_ratio)
    rows = {}
    for (phone, model), where in positions.items():
        share = np.array(shares[phone, model])
        rows[phone, model] = _RatioRows(phone, part_table(model).whole(np.array(where)), np.log(share / (1 - share)))
    return rows


def _ratio_rows(wanted: Collection[tuple[str, str]] | None) -> list[_RatioRows]:
    return [row for pair, row in sorted(_all_ratio_rows().items()) if wanted is None or pair in wanted]


class _Problem:
    """Residuals and their derivatives by the logarithms of all numbers."""

    def __init__(self, train: Iterable[Cell], ratio_rows: Sequence[_RatioRows]) -> None:
        self._ratio_rows = ratio_rows
        self._alone = {(c.device, c.model, c.strategy): _alone(c) for c in train if c.strategy in SINGLE}
        self._prior = np.diag(1 / SPREAD)
        self._ties = [_tie(name, prior) for name, prior in PHONE_PRIOR.items() if prior.tied is not None]

    def solve(self, x: Floats, cells: Sequence[Cell], schedules: Mapping[tuple[str, str, str], Walked]) -> Floats:
        try:
            from scipy.optimize import least_squares
        except ImportError:
            raise MissingExtra("calibration", "calibrate") from None
        known = {**self._alone, **schedules}
        last: list[tuple[bytes, tuple[Floats, Floats]]] = []

        def both(y: Floats) -> tuple[Floats, Floats]:
            if not last or last[0][0] != y.tobytes():
                last[:] = [(y.tobytes(), self._residuals(y, cells, known))]
            return last[0][1]

        done = least_squares(
            lambda y: both(y)[0], x, jac=lambda y: both(y)[1], loss="soft_l1", xtol=1e-6, ftol=1e-6, max_nfev=60
        )
        return np.asarray(done.x, dtype=np.float64)

    def _residuals(
        self, x: Floats, cells: Sequence[Cell], schedules: Mapping[tuple[str, str, str], Walked]
    ) -> tuple[Floats, Floats]:
        rates = {phone: _rates(x, phone) for phone in PHONES}
        values, slopes = [(x - CENTRE) / SPREAD], [self._prior]
        for cell in cells:
            spread = CELL_SPREAD[strategy_class(cell)]
            if cell.strategy == "mace_gpu" and FAMILY[cell.device] == "mali":
                spread = MALI_GPU_SPREAD
            rate, jacobian = rates[cell.device]
            slope = _slope(cell, rate, schedules)
            values.append(np.array([np.log(slope.latency_ms / cell.latency_ms) / spread]))
            by_number = np.concatenate([slope.cpu, slope.gpu, [slope.unfriendly, slope.contention]])
            slopes.append((by_number @ jacobian)[None] / slope.latency_ms / spread)
        for row in self._ratio_rows:
            rate, jacobian = rates[row.phone]
            on_cpu, on_gpu = row.parts.cpu @ rate.cpu, row.parts.gpu @ rate.gpu
            values.append((np.log(on_cpu / on_gpu) - row.target) / RATIO_SPREAD)
            count = len(rate.cpu)
            by_cpu = row.parts.cpu @ jacobian[:count] / on_cpu[:, None]
            by_gpu = row.parts.gpu @ jacobian[count : count + len(rate.gpu)] / on_gpu[:, None]
            slopes.append((by_cpu - by_gpu) / RATIO_SPREAD)
        for tie in self._ties:
            values.append(tie @ x)
            slopes.append(tie)
        return np.concatenate(values), np.concatenate(slopes)


def _alone(cell: Cell) -> Walked:
    """All operators on one processor: what needs no planning. What moving inputs and outputs costs comes later."""
    table = part_table(cell.model)
    count = len(table.possible)
    everywhere, nowhere = np.arange(count), np.full(count, -1)
    cpu = table.cpu_row[everywhere, 0, 0] if cell.strategy == "mace_cpu" else nowhere
    gpu = table.gpu_row[everywhere, 1, 0] if cell.strategy == "mace_gpu" else nowhere
    return Walked(table.parts.take(cpu, gpu), np.zeros(count, dtype=bool), True, 0.0, np.zeros(count))


def _slope(cell: Cell, rates: Rates, schedules: Mapping[tuple[str, str, str], Walked]) -> Slope:
    if cell.strategy == "ideal":
        return ideal_of(cell.model, rates)
    return latency_of(schedules[cell.device, cell.model, cell.strategy], rates)


def _tie(name: str, prior: Prior) -> Floats:
    """Deviations from the tied phones' mean, as rows of derivatives."""
    where = [INDEX[phone, name] for phone in PHONES if prior.tied in ("", FAMILY[phone])]
    rows = np.zeros((len(where), len(INDEX)))
    rows[np.arange(len(where)), where] = 1
    rows[:, where] -= 1 / len(where)
    return rows / prior.tie


def _rates(x: Floats, phone: str) -> tuple[Rates, Floats]:
    """The coefficients of a phone, and their derivatives by all numbers' logarithms."""
    own = {name: INDEX[Fit.owner(phone, name), name] for name in (*PHONE_PRIOR, *FAMILY_PRIOR, *SHARED_PRIOR)}
    # Each coefficient is a product of numbers: the constant, and the numbers with their exponents.
    products: list[tuple[float, dict[str, int]]] = [
        (1.0, {"cpu_ms_per_gmac": 1}),
        (1.0, {"cpu_ms_per_gmac": 1, "cpu_direct": 1}),
        (1.0, {"cpu_ms_per_gmac": 1, "cpu_stride2": 1}),
        (1.0, {"cpu_ms_per_mb": 1}),
        (CPU_LAUNCH_MS, {}),
        (1.0, {"gpu_ms_per_gmac": 1}),
        (1.0, {"gpu_ms_per_gmac": 1, "gpu_1x1": 1}),
        (1.0, {"gpu_ms_per_gmac": 1, "gpu_large": 1}),
        (1.0, {"gpu_ms_per_mb": 1}),
        (1 / phones()[phone].memory_gbps, {"gpu_dense_share": -1}),
        (1.0, {"gpu_launch_ms": 1}),
        (1.0, {"unfriendly": 1}),
        (1.0, {"contention": 1}),
    ]
    exponents = np.zeros((len(products), len(x)))
    for row, (_, factors) in enumerate(products):
        for name, power in factors.items():
            exponents[row, own[name]] = power
    value = np.array([constant for constant, _ in products]) * np.exp(exponents @ x)
    rates = Rates(value[:5], value[5:11], float(value[11]), UNFRIENDLY_SHARE_1X1, float(value[12]))
    return rates, value[:, None] * exponents
