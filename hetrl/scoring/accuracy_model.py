"""What compression costs in accuracy: predicted at first, and refined by every measured score.

A Bayesian linear regression. With y the drop in points, f = -100 log(1 - y / 100) has no upper end and is about y where
y is small. It is what `hetrl.accuracy` and `hetrl.optimize.low_rank` predict, plus a sum of terms that grow with the
compression: for each stage of the network with pruning ratio r the terms r, r^2 and r^4; for low rank, with the share g
of the weights gone, g and g^2; and a flat price of int8. Coefficients are normally distributed about 0 before anything
is measured, those of stages correlated. Measured drops have known errors (from the number of samples), so that the
posterior is normal and closed (Gelman et al., "Bayesian Data Analysis", 3rd ed., section 14.8). Its widths grow by one
common factor where measurements are further from the prediction than it allows, with Student's distribution for the
number of them (ibid., section 14.2), and never shrink by it: good measurements of pruning say nothing of int8.

Coefficients below those of the prediction with the sign turned would let accuracy rise with compression. The mean is
that of the nearest coefficients, in the posterior's own metric, that do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np

from hetrl.accuracy import predicted_accuracy_drop_pct
from hetrl.errors import UsageError
from hetrl.optimize.low_rank import low_rank_drop_pct
from hetrl.plan import Evidence
from hetrl.scoring.nonnegative import nonnegative_least_squares
from hetrl.scoring.results import Drop
from hetrl.scoring.statistics import Floats, Z, student_t

POWERS = (1, 2, 4)  # of the pruning ratio
AT = 0.3  # the ratio at which `SPREAD` is compared with the predicted drop
# Standard deviation of each power's term there, over the predicted drop: without training, pruning costs far more.
SPREAD = (2.0, 3.0, 3.0)
STAGE_CORRELATION = 0.5
LOW_RANK_SPREAD = (1.0, 1.5)  # of the terms g and g^2 at g = 1, over the predicted drop there
INT8_SPREAD_POINTS = 2.0  # networks of depthwise convolutions lose 5 to 8 points (see `hetrl.accuracy`)
MISFIT = 0.2  # standard deviation of what the terms cannot say, over the drop
SMALLEST_ERROR_POINTS = 0.1
PRIOR_FREEDOM = 4.0  # measurements that the widths before any measurement are worth
ALL_POINTS = 100.0
MOST_POINTS = 99.0  # that a measurement counts for: all of them would be endlessly far away
MOST_GAIN_POINTS = 1.0  # compression seldom helps, and then little


class Compressed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a model is compressed, as far as its accuracy depends on it.

    :param prune_ratios: share (0 to below 1) of each stage's prunable channels that is really gone, which rounding to
        multiples makes less than what was asked for; one for all will do.
    :param low_rank_kept: share (above 0 to 1) of the weights that low rank leaves.
    :param int8: whether weights and activations are 8-bit integers.
    """

    prune_ratios: tuple[float, ...] = (0.0,)
    low_rank_kept: float = 1.0
    int8: bool = False

    def __post_init__(self) -> None:
        if not self.prune_ratios or not all(0 <= ratio < 1 for ratio in self.prune_ratios):
            raise UsageError(f"pruning ratios of {self.prune_ratios} make no sense", "0 <= ratio < 1 for each stage")
        if not 0 < self.low_rank_kept <= 1:
            raise UsageError(
                f"low rank that keeps {self.low_rank_kept} of the weights makes no sense", "0 < share <= 1"
            )


class Measurement(msgspec.Struct, frozen=True):
    """A measured drop in points, and the standard deviation of its error."""

    compressed: Compressed
    points: float
    error_points: float


class Expected(NamedTuple):
    """Drops in points; arrays of one number per setting.

    :param low: the 90 % interval is from `low` to `high`: of the drop itself, without the error of a measurement.
    """

    points: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class AccuracyModel:
    """Expects drops of settings, from those that were measured.

    :param stages: of the network, each with a pruning ratio of its own.
    """

    stages: int = 1
    measured: tuple[Measurement, ...] = ()

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise UsageError(f"a network of {self.stages} stages makes no sense", "1 or more")

    @property
    def evidence(self) -> Evidence:
        """`predicted` until something was measured."""
        return Evidence.CALIBRATED if self.measured else Evidence.PREDICTED

    def refined(self, compressed: Compressed, drop: Drop) -> AccuracyModel:
        """The model after one more measured drop, in percentage points.

        :raises UsageError: not as many ratios as stages.
        """
        self._terms([compressed])
        error = SMALLEST_ERROR_POINTS
        if drop.interval is not None:
            error = max(error, (drop.interval[1] - drop.interval[0]) / (2 * Z))
        return replace(self, measured=(*self.measured, Measurement(compressed, drop.points, error)))

    def expected(self, settings: Sequence[Compressed]) -> Expected:
        """The drops of settings that need not have been measured; they never fall where a ratio grows.

        :raises UsageError: not as many ratios as stages.
        """
        return self._of_terms(self._terms(settings))

    def pruning_points(self, gone: Floats) -> Floats:
        """(N,) the drops in points where (N, stages) shares of the channels are gone, and nothing else is done."""
        rest = np.zeros((len(gone), 3))
        return self._of_terms(np.hstack([_pruning_terms(gone), rest])).points

    def _of_terms(self, terms: Floats) -> Expected:
        change, posterior = self._posterior
        middle = _endless(terms @ _predicted(self.stages)) + terms @ change
        variance = ((terms @ posterior) * terms).sum(1) + (MISFIT * middle) ** 2
        factor, freedom = self._inflation
        reach = student_t(freedom) * np.sqrt(factor * np.maximum(variance, 0))
        low = np.maximum(_points(middle - reach), -MOST_GAIN_POINTS)
        return Expected(_points(middle), low, _points(middle + reach))

    @cached_property
    def _posterior(self) -> tuple[Floats, Floats]:
        """What the coefficients differ from the predicted ones by, in the mean, and its covariance."""
        predicted, covariance = _predicted(self.stages), _spread(self.stages)
        if not self.measured:
            return np.zeros(len(predicted)), covariance
        terms, surprise, noise = self._data
        weighted = (terms / noise[:, None]).T
        precision = np.linalg.inv(covariance) + weighted @ terms
        posterior = np.linalg.inv(precision).astype(np.float64)
        # With L L^T the precision, |L^T (x - mean)| is the distance in the posterior's own metric.
        root = np.linalg.cholesky(precision).T.astype(np.float64)
        nearest = nonnegative_least_squares(root, root @ (predicted + posterior @ weighted @ surprise))
        return nearest - predicted, posterior

    @cached_property
    def _inflation(self) -> tuple[float, float]:
        """By how much all variances grow, and the degrees of freedom of the intervals."""
        if not self.measured:
            return 1.0, PRIOR_FREEDOM
        terms, surprise, noise = self._data
        predictive = terms @ _spread(self.stages) @ terms.T + np.diag(noise)
        distance = float(surprise @ np.linalg.solve(predictive, surprise))
        freedom = PRIOR_FREEDOM + len(self.measured)
        return max(1.0, (PRIOR_FREEDOM + distance) / freedom), freedom

    @cached_property
    def _data(self) -> tuple[Floats, Floats, Floats]:
        """Terms of the measured settings, how far the prediction is from them, and the variances of errors."""
        terms = self._terms([one.compressed for one in self.measured])
        predicted = _endless(terms @ _predicted(self.stages))
        points = np.minimum([one.points for one in self.measured], MOST_POINTS)
        measured = _endless(points)
        errors = np.array([one.error_points for one in self.measured]) / (1 - points / ALL_POINTS)
        noise = errors**2 + (MISFIT * (np.abs(measured) + predicted) / 2) ** 2
        return terms, measured - predicted, noise

    def _terms(self, settings: Sequence[Compressed]) -> Floats:
        """Shape settings x coefficients."""
        rows = np.zeros((len(settings), self.stages * len(POWERS) + 3))
        for row, one in zip(rows, settings, strict=True):
            if len(one.prune_ratios) not in (1, self.stages):
                raise UsageError(
                    f"{len(one.prune_ratios)} pruning ratios do not fit {self.stages} stages", "one for each"
                )
            ratios = np.broadcast_to(np.array(one.prune_ratios), self.stages)
            gone = 1 - one.low_rank_kept
            row[:-3] = _pruning_terms(ratios[None])[0]
            row[-3:] = gone, gone**2, one.int8
        return rows


def _pruning_terms(gone: Floats) -> Floats:
    """Shape settings x (powers x stages), of shape settings x stages."""
    return np.concatenate([gone**power / gone.shape[1] for power in POWERS], axis=1)


def _endless(points: Floats) -> Floats:
    """Drops on the scale that the model works on."""
    scaled: Floats = -ALL_POINTS * np.log1p(-points / ALL_POINTS)
    return scaled


def _points(endless: Floats) -> Floats:
    points: Floats = -ALL_POINTS * np.expm1(-endless / ALL_POINTS)
    return points


def _predicted(stages: int) -> Floats:
    """The coefficients of the predicted drop, in points."""
    coefficients = np.zeros(stages * len(POWERS) + 3)
    coefficients[stages : 2 * stages] = predicted_accuracy_drop_pct(AT) / AT**2  # the parabola of `hetrl.accuracy`
    coefficients[-2:] = low_rank_drop_pct(0.0), predicted_accuracy_drop_pct(0.0, int8=True)
    return coefficients


def _spread(stages: int) -> Floats:
    """The covariance of the coefficients before anything is measured."""
    at, low_rank = predicted_accuracy_drop_pct(AT), low_rank_drop_pct(0.0)
    # Stages that share a ratio are together as uncertain as a network of one stage.
    one = np.full((stages, stages), STAGE_CORRELATION) + np.diag(np.full(stages, 1 - STAGE_CORRELATION))
    one /= STAGE_CORRELATION + (1 - STAGE_CORRELATION) / stages
    size = stages * len(POWERS)
    covariance = np.zeros((size + 3, size + 3))
    for index, (power, spread) in enumerate(zip(POWERS, SPREAD, strict=True)):
        part = slice(index * stages, (index + 1) * stages)
        covariance[part, part] = one * (spread * at / AT**power) ** 2
    rest = (LOW_RANK_SPREAD[0] * low_rank, LOW_RANK_SPREAD[1] * low_rank, INT8_SPREAD_POINTS)
    covariance[size:, size:] = np.diag(np.square(rest))
    return covariance
