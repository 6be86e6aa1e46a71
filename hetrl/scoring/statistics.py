"""90 % intervals of shares, means, differences and arbitrary statistics of samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
LEVEL = 0.9
Z = 1.6448536269514722  # the normal distribution's quantile of 95 %
RESAMPLES = 2000
_CHUNK = 4_000_000  # numbers in memory at once


def wilson(hits: int, count: int) -> Interval:
    """Of a share of `count` independent samples (Wilson, JASA 1927)."""
    share, square = hits / count, Z * Z
    middle = (share + square / (2 * count)) / (1 + square / count)
    reach = Z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def paired_shares(only_first: int, only_second: int, count: int) -> Interval:
    """Of the first share minus the second, both of the same samples.

    Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data"
    (Journal of Educational and Behavioral Statistics 37, 2012): one sample is added to each kind of disagreement.

    :param only_first: samples that only the first hits; `only_second` likewise.
    """
    first, second = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    middle = first - second
    reach = Z * math.sqrt((first + second - middle * middle) / (count + 2))
    return max(-1.0, middle - reach), min(1.0, middle + reach)


def bootstrap(samples: Floats, statistic: Callable[[Floats], Floats], seed: int = 0) -> Interval:
    """Of a function of means: the percentiles of 2,000 resamples (Efron and Tibshirani, 1993, chapter 13).

    :param samples: shape samples x variables; all variables of a sample stay together.
    :param statistic: of means (resamples x variables), one number for each resample.
    """
    count, variables = samples.shape
    draw, step = np.random.default_rng(seed), max(1, _CHUNK // (count * variables))
    found = []
    for start in range(0, RESAMPLES, step):
        rows = draw.integers(0, count, (min(step, RESAMPLES - start), count))
        found.append(statistic(samples[rows].mean(1)))
    low, high = np.quantile(np.concatenate(found), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def jackknife(value: float, left_out: Floats) -> Interval:
    """Of any smooth statistic, from its values with one of several equal parts of the samples left out.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 11, with parts in place of single samples.

    :param value: of all samples.
    :param left_out: one for each part; at least 3.
    """
    parts = len(left_out)
    variance = (parts - 1) / parts * float(((left_out - left_out.mean()) ** 2).sum())
    reach = student_t(parts - 1) * math.sqrt(variance)
    return value - reach, value + reach


def student_t(freedom: float) -> float:
    """Student's quantile of 95 %, within 0.5 % from 2 degrees of freedom on.

    The expansion in Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5.
    """
    z, n = Z, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n ** (power + 1) for power, term in enumerate(terms))
