"""mse, psnr and cosine: a number for each sample, and their mean over the samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hetrl.errors import UsageError
from hetrl.scoring.data import EvalData
from hetrl.scoring.interface import Array
from hetrl.scoring.metrics import Metric, Parts, Summary, finite
from hetrl.scoring.statistics import Floats, Interval, bootstrap

PerSample = Callable[[Floats, Floats, float], Floats]
HIGHEST_PSNR_DB = 100.0  # of outputs that are exact, so that means stay finite


class SampleMean(Metric):
    """The mean over samples of a number for each.

    :param per_sample: from outputs and targets (each samples x numbers) and the range of all targets.
    """

    def __init__(self, name: str, per_sample: PerSample, *, larger_is_better: bool, unit: str = "") -> None:
        self.name = name
        self.larger_is_better = larger_is_better
        self.unit = unit
        self._per_sample = per_sample

    def check(self, data: EvalData, output: str, found: Array) -> None:
        if found.dtype.kind not in "fiu":
            raise UsageError(f"{self.name} wants numbers, and the output {output!r} is {found.dtype}")
        if data.labels.shape[1:] != found.shape[1:]:
            wants, has = ("x".join(["N", *map(str, shape[1:])]) for shape in (found.shape, data.labels.shape))
            hint = "--metric top1" if data.labels.ndim == 1 and data.labels.dtype.kind == "i" else f"targets of {wants}"
            raise UsageError(f"{self.name} wants targets like the output {output!r}, {wants}, and they are {has}", hint)

    def summary(self, parts: Parts, data: EvalData) -> Summary:
        values, every = np.zeros(len(data)), data.samples.labels
        width = float(every.max() - every.min())
        for place, found in parts:
            count = len(found)
            one, other = (np.asarray(a, np.float64).reshape(count, -1) for a in (found, data.labels[place]))
            values[place] = self._per_sample(one, other, width)
        return Summary(finite(float(values.mean()), self.name), tuple(values.tolist()))

    def interval(self, summary: Summary) -> Interval | None:
        samples = np.array(summary.parts)[:, None]
        return bootstrap(samples, lambda means: means[:, 0]) if len(samples) > 1 else None

    def drop(self, original: Summary, other: Summary) -> tuple[float, Interval | None]:
        points = self.relative_drop(original.value, other.value)
        pairs = np.array([original.parts, other.parts]).T
        if len(pairs) < 2:
            return points, None
        with np.errstate(divide="ignore", invalid="ignore"):
            bounds = bootstrap(pairs, lambda means: self.relative(means[:, 0], means[:, 1]))
        return points, bounds if np.isfinite(bounds).all() else None


def _mse(found: Floats, right: Floats, width: float) -> Floats:
    squares: Floats = ((found - right) ** 2).mean(1)
    return squares


def _psnr(found: Floats, right: Floats, width: float) -> Floats:
    """In decibels; the peak is the difference between the largest and the smallest target of all data."""
    errors = _mse(found, right, width)
    if width == 0:
        raise UsageError("psnr wants targets that differ, and all are equal", "--metric mse")
    with np.errstate(divide="ignore"):
        decibels: Floats = np.minimum(10 * np.log10(width**2 / errors), HIGHEST_PSNR_DB)
    return decibels


def cosines(found: Floats, right: Floats, width: float = 0.0) -> Floats:
    """Of the angle between each two rows; 1 for two that are zero, 0 where only one is."""
    lengths = np.linalg.norm(found, axis=1), np.linalg.norm(right, axis=1)
    product, dots = lengths[0] * lengths[1], (found * right).sum(1)
    both = (lengths[0] == 0) & (lengths[1] == 0)
    result: Floats = np.where(product > 0, dots / np.where(product > 0, product, 1), both)
    return result


mse = SampleMean("mse", _mse, larger_is_better=False)
psnr = SampleMean("psnr", _psnr, larger_is_better=True, unit="dB")
cosine = SampleMean("cosine", cosines, larger_is_better=True)
