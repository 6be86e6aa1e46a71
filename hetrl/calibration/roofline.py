"""Fit of `RooflineCost`s to whole-network latencies: several pieces of silicon of one engine at once.

The time of a network is linear in the cost's numbers, so that a network is one row of *features*. Logarithms of the
numbers are fitted: each piece of silicon has a scale of its own, wide open, and its numbers stray from the shared ones
with a weak prior, so that eight networks on one chip still learn from twenty on the next.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import RooflineCost
from hetrl.device_bridge.surrogate.op_time import KIND_CODE, OpShapes, roofline_time_ms
from hetrl.errors import MissingExtra
from hetrl.graph import OpKind

Floats = npt.NDArray[np.float64]
Fit = Mapping[str, Mapping[str, float]]  # silicon -> name -> number
PARAMETERS = tuple(RooflineCost.__struct_fields__)
PLAIN, GROUPED, DEPTHWISE = FAMILIES = ("plain", "grouped", "depthwise")
CELL_SPREAD = 0.10  # run-to-run and build-to-build spread of one row (10 to 15 % between equal phones)
SCALE_SPREAD = 1.5  # of a piece of silicon against the engine's others: any
SYNC_SPREAD = 0.3  # of `sync_ms` around its prior, which others' measurements of one call give
_INTS = ("in_channels", "out_channels", "out_h", "out_w", "kernel_h", "kernel_w", "stride", "dilation", "groups")


@dataclass(frozen=True)
class Row:
    """One measured (or, by a peer's tool, predicted) latency."""

    silicon: str
    network: str
    latency_ms: float


@dataclass(frozen=True)
class Prior:
    """Centres of the numbers, and how far they may stray: all silicon together, and each piece for itself."""

    centre: Mapping[str, float]
    shared_spread: float = 1.0
    own_spread: float = 0.35


def prior(
    rates: tuple[float, float, float, float],
    traffic: tuple[float, float, float, float],
    launch_ms: float,
    sync_ms: float | None = None,
) -> Prior:
    """A prior from its centres, in orders of magnitude.

    :param rates: ms per GMAC of plain, pointwise, grouped and depthwise convolutions.
    :param traffic: ms per MB of all traffic, dense weights, unfolded inputs, and what spills.
    """
    centre = dict(zip(PARAMETERS, (*rates, *traffic, launch_ms), strict=True))
    return Prior(centre if sync_ms is None else centre | {"sync_ms": sync_ms})


@dataclass(frozen=True)
class Group:
    """Silicon of one kind and engine, fitted together; `file` has the layers of its networks."""

    file: str
    processor: str
    silicon: tuple[str, ...]
    prior: Prior


def least(rows: Iterable[Row]) -> list[Row]:
    """The least latency of each (silicon, network)."""
    best: dict[tuple[str, str], float] = {}
    for r in rows:
        best[r.silicon, r.network] = min(best.get((r.silicon, r.network), r.latency_ms), r.latency_ms)
    return [Row(silicon, network, ms) for (silicon, network), ms in sorted(best.items())]


def read_csv(name: str) -> list[dict[str, str]]:
    """Rows of a file of `hetrl/data`."""
    with (resources.files("hetrl.data") / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@cache
def layers(file: str) -> Mapping[str, OpShapes]:
    """The fused operators of each network of a layer file, one entry per kind of operator (see `counts`)."""
    return {network: _shapes(rows) for network, rows in _by_network(file).items()}


@cache
def counts(file: str) -> Mapping[str, Floats]:
    """How often each entry of `layers` occurs."""
    return {network: np.array([float(r["count"]) for r in rows]) for network, rows in _by_network(file).items()}


@cache
def _by_network(file: str) -> Mapping[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in read_csv(file):
        found[row["network"]].append(row)
    return found


def _shapes(rows: Sequence[Mapping[str, str]]) -> OpShapes:
    def ints(column: str) -> npt.NDArray[np.int64]:
        return np.array([int(r[column]) for r in rows], dtype=np.int64)

    def floats(column: str) -> Floats:
        return np.array([float(r[column]) for r in rows])

    return OpShapes(
        kind=np.array([KIND_CODE[OpKind(r["kind"])] for r in rows], dtype=np.int64),
        batch=ints("batch"),
        in_elements=floats("in_elements"),
        extra_elements=floats("extra_elements"),
        weight_elements=floats("weights"),
        **{name: ints(name) for name in _INTS},
    )


def family(file: str, network: str) -> str:
    """`grouped` if a convolution has groups of several channels, else `depthwise` if one has groups, else `plain`."""
    ops = layers(file)[network]
    conv = (ops.kind == KIND_CODE[OpKind.CONV]) & (ops.groups > 1)
    if (conv & (ops.groups < ops.in_channels)).any():
        return GROUPED
    return DEPTHWISE if conv.any() else PLAIN


def cost_of(values: Mapping[str, float], source: Source, note: str) -> RooflineCost:
    """A cost from its numbers by name; others (`sync_ms`) are passed over."""
    return RooflineCost(**{name: Quantity(values[name], source, note) for name in PARAMETERS})


@cache
def op_features(file: str, network: str) -> Floats:
    """(operators, parameters): the time of each of the network's operators is this times the cost's numbers."""
    ops = layers(file)[network]
    units = [{name: float(name == one) for name in PARAMETERS} for one in PARAMETERS]
    columns = [roofline_time_ms(ops, cost_of(unit, Source.ASSUMED, "")) for unit in units]
    times: Floats = np.stack(columns, axis=1) * counts(file)[network][:, None]
    return times


def features(file: str, network: str, names: Sequence[str]) -> Floats:
    """One number for each name: the network's latency is this times the fitted numbers."""
    total = dict(zip(PARAMETERS, op_features(file, network).sum(axis=0), strict=True)) | {"sync_ms": 1.0}
    return np.array([total[name] for name in names])


def fit(rows: Sequence[Row], group: Group) -> Fit:
    """The numbers of every piece of silicon in the rows: soft-L1 least squares on log errors, with priors.

    If the prior has a centre of `sync_ms` (what one inference costs on top, on an accelerator), that is fitted too.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise MissingExtra("calibration", "calibrate") from None
    file, prior = group.file, group.prior
    silicon = sorted({r.silicon for r in rows})
    index = np.array([silicon.index(r.silicon) for r in rows])
    names = tuple(prior.centre)
    table = np.stack([features(file, r.network, names) for r in rows])
    log_latency = np.log([r.latency_ms for r in rows])
    centre = np.log([prior.centre[name] for name in names])
    n, s = len(names), len(silicon)
    scales = np.array([float(name != "sync_ms") for name in names])
    shared_spread = np.where(scales > 0, prior.shared_spread, SYNC_SPREAD)

    def unpack(x: Floats) -> tuple[Floats, Floats, Floats]:
        return x[:n], x[n : n + s], x[n + s :].reshape(s, n)

    def logs(x: Floats) -> Floats:
        shared, scale, own = unpack(x)
        found: Floats = centre + shared + scale[:, None] * scales + own
        return found

    def residuals(x: Floats) -> Floats:
        shared, scale, own = unpack(x)
        time = (table * np.exp(logs(x))[index]).sum(axis=1)
        return np.concatenate(
            [
                (np.log(time) - log_latency) / CELL_SPREAD,
                shared / shared_spread,
                scale / SCALE_SPREAD,
                own.ravel() / prior.own_spread,
            ]
        )

    def jacobian(x: Floats) -> Floats:
        terms = table * np.exp(logs(x))[index]
        share = terms / terms.sum(axis=1, keepdims=True) / CELL_SPREAD
        m = len(rows)
        data = np.zeros((m, n + s + s * n))
        data[:, :n] = share
        data[np.arange(m), n + index] = share @ scales
        for k in range(n):
            data[np.arange(m), n + s + index * n + k] = share[:, k]
        spread = np.concatenate([shared_spread, np.full(s, SCALE_SPREAD)])
        return np.concatenate([data, np.diag(1 / np.concatenate([spread, np.full(s * n, prior.own_spread)]))])

    best = least_squares(residuals, np.zeros(n + s + s * n), jac=jacobian, loss="soft_l1", max_nfev=200)
    found = np.exp(logs(best.x))
    return {k: dict(zip(names, map(float, values), strict=True)) for k, values in zip(silicon, found, strict=True)}


def predict(file: str, network: str, values: Mapping[str, float]) -> float:
    """Latency of a network, ms."""
    return float(features(file, network, tuple(values)) @ np.array(list(values.values())))


@dataclass(frozen=True)
class Held:
    """A row beside what a fit without its network says."""

    row: Row
    predicted_ms: float

    @property
    def error(self) -> float:
        return self.predicted_ms / self.row.latency_ms - 1


def leave_one_model_out(rows: Sequence[Row], group: Group) -> list[Held]:
    """Predict each network by a fit to the others; a network is left out on all silicon at once."""
    held = []
    for network in sorted({r.network for r in rows}):
        found = fit([r for r in rows if r.network != network], group)
        cells = [r for r in rows if r.network == network and r.silicon in found]
        held += [Held(row, predict(group.file, network, found[row.silicon])) for row in cells]
    return held


def median_abs(held: Sequence[Held]) -> float:
    """Median of the absolute errors; nan for none."""
    return float(np.median([abs(h.error) for h in held])) if held else float("nan")


def mean_abs(held: Sequence[Held]) -> float:
    """Mean of the absolute errors; nan for none."""
    return float(np.mean([abs(h.error) for h in held])) if held else float("nan")
