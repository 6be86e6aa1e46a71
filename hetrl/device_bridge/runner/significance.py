"""What samples can be trusted to say: an interval of their median, and whether one plan is faster than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist, median

EXACT_PAIRS = 50  # up to here the null distribution is counted out, above it is normal


def median_interval(samples: Sequence[float], confidence: float) -> tuple[float, float] | None:
    """The confidence interval of the median from order statistics, whatever the samples' distribution is.

    Between the j-th smallest and the j-th largest of n samples lies the median with probability 1 - 2 P(B < j), B
    binomial with n and 1/2; j is the largest for which this is at least `confidence` (W. J. Conover, Practical
    Nonparametric Statistics, 1999, section 3.2; recommended for timings by T. Hoefler and R. Belli, Scientific
    Benchmarking of Parallel Computing Systems, SC 2015). The samples count as independent.

    :param confidence: 0 to 1, such as 0.9.
    :return: None for too few samples; 0.9 takes five.
    """
    rank = _interval_rank(len(samples), confidence)
    if rank == 0:
        return None
    ordered = sorted(samples)
    return ordered[rank - 1], ordered[-rank]


@cache
def _interval_rank(count: int, confidence: float) -> int:
    """The j above; 0 where there is none."""
    rank, below = 0, 0  # `below` of the 2^count equally likely patterns have B < rank
    limit = (1 - confidence) / 2
    while rank < count / 2:
        below += math.comb(count, rank)
        if below / 2**count > limit:
            break
        rank += 1
    return rank


def significantly_faster(a_ms: Sequence[float], b_ms: Sequence[float], level: float = 0.05) -> bool:
    """Whether `a` is faster than `b` by more than chance.

    Wilcoxon's signed-rank test of log(a / b), one-sided: F. Wilcoxon, Individual Comparisons by Ranking Methods, 1945.

    :param a_ms: latencies, one per round; `b_ms[i]` is from the same round, in which the order was drawn.
    :param level: how often plans of equal speed may be called different.
    """
    return signed_rank_p(a_ms, b_ms) <= level


def signed_rank_p(a_ms: Sequence[float], b_ms: Sequence[float]) -> float:
    """How likely `a` would look at least this much faster than `b` if both were equally fast.

    Rounds without a difference are left out, and ties share their ranks; up to 50 rounds are counted out exactly.
    """
    ratios = [math.log(a / b) for a, b in zip(a_ms, b_ms, strict=True)]
    ratios = [ratio for ratio in ratios if ratio != 0]
    if not ratios:
        return 1.0
    ranks = _doubled_ranks([abs(ratio) for ratio in ratios])
    slower = sum(rank for rank, ratio in zip(ranks, ratios, strict=True) if ratio > 0)
    if len(ranks) <= EXACT_PAIRS:
        return _at_most(slower, ranks)
    mean, spread = sum(ranks) / 2, math.sqrt(sum(rank * rank for rank in ranks)) / 2
    return NormalDist(mean, spread).cdf(slower + 1)  # half a rank of continuity, in doubled ranks


def _doubled_ranks(sizes: Sequence[float]) -> list[int]:
    """Twice the rank of each, so that shared ranks are whole numbers."""
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    ranks = [0] * len(sizes)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and sizes[order[stop]] == sizes[order[start]]:
            stop += 1
        for place in order[start:stop]:
            ranks[place] = start + 1 + stop
        start = stop
    return ranks


def _at_most(total: int, ranks: Sequence[int]) -> float:
    """The probability that the ranks whose sign is positive, each with probability 1/2, sum to at most `total`."""
    ways = [1] + [0] * total
    for rank in ranks:
        for value in range(total, rank - 1, -1):
            ways[value] += ways[value - rank]
    return float(sum(ways) / 2 ** len(ranks))


def speedup(a_ms: Sequence[float], b_ms: Sequence[float]) -> float:
    """How many times faster `a` is than `b`: the median over rounds."""
    return median(b / a for a, b in zip(a_ms, b_ms, strict=True))
