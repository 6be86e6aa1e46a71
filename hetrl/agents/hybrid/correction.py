"""What measured timelines say about the surrogate: which placements it takes for faster or slower than they are.

For every measured segment r = log(measured / predicted). The model is a sum of effects, each shrunk towards zero as a
normal prior would: one for all, one per placement, and one per placement and fusion group; a segment has the mean of
its groups'. Fitted by a few rounds of backfitting, as in an additive mixed model. Draws from what is left open let
those who search try what the surrogate may be wrong about (Thompson sampling).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.surrogate.cost_model import Schedules
from hetrl.device_bridge.surrogate.tables import MEMORIES
from hetrl.envs.space import PlanSpace

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ROUNDS = 4
SHRINK = 1.0  # measurements that the prior is worth
BOLD = 2.0  # standard deviations of a draw; found on d1 with placements made wrong by 25 %, where 1 explored too little
PRIOR_SD, PRIOR_WORTH = 0.15, 4.0  # a surrogate's error on a network that it never saw (docs/calibration.md)


@dataclass(frozen=True)
class Effects:
    """Cumulative logarithms of factors, (D, placements, groups + 1): D beliefs."""

    cumulative: Floats

    @staticmethod
    def of(effects: Floats) -> Effects:
        """From (D, placements, groups)."""
        none = np.zeros((*effects.shape[:2], 1))
        return Effects(np.concatenate([none, np.cumsum(effects, axis=2)], axis=2))


@dataclass(frozen=True)
class Segments:
    """S segments: number of their plan, first and last group, placement (option and memory type), and time in ms."""

    plan: Ints
    start: Ints
    end: Ints
    placement: Ints
    ms: Floats

    @staticmethod
    def of(space: PlanSpace, batch: Schedules, segment_ms: Floats) -> Segments:
        """Those of a batch, from (B, groups) times at each segment's last group."""
        plan, end = np.nonzero(batch.end.T == np.arange(space.groups))
        placement = batch.option[end, plan] * len(MEMORIES) + batch.memory[end, plan]
        return Segments(plan, batch.start[end, plan], end, placement, segment_ms[plan, end])

    def factors(self, beliefs: Effects, which: Ints) -> Floats:
        """(S,) what to multiply times by; `which` (plans,) is the belief for each plan."""
        belief = which[self.plan]
        upto = beliefs.cumulative[belief, self.placement, self.end + 1]
        effect = (upto - beliefs.cumulative[belief, self.placement, self.start]) / (self.end - self.start + 1)
        factors: Floats = np.exp(effect)
        return factors


class Correction:
    """Factors on the surrogate's times of segments, and how sure they are."""

    def __init__(self, space: PlanSpace) -> None:
        placements = len(space.options) * len(MEMORIES)
        self._all = 0.0
        self._of_placement = np.zeros(placements)
        self._of_group = np.zeros((placements, space.groups))
        self._seen = np.zeros((placements, space.groups))
        self._count = np.zeros(placements)
        self._sd = self._sd_placement = PRIOR_SD
        self._start, self._end, self._placement = (np.zeros(0, dtype=np.int64) for _ in range(3))
        self._ratio = np.zeros(0)

    def learn(self, predicted: Segments, measured_ms: Floats) -> None:
        """Take in what segments that were predicted have taken, and fit anew."""
        with np.errstate(invalid="ignore"):
            known = (predicted.ms > 0) & (measured_ms > 0) & np.isfinite(measured_ms)
        self._start = np.append(self._start, predicted.start[known])
        self._end = np.append(self._end, predicted.end[known])
        self._placement = np.append(self._placement, predicted.placement[known])
        self._ratio = np.append(self._ratio, np.log(measured_ms[known] / predicted.ms[known]))
        if self._ratio.size:
            self._fit()

    def _fit(self) -> None:
        ratio, placement = self._ratio, self._placement
        lengths = self._end - self._start + 1
        rows = np.repeat(np.arange(len(ratio)), lengths)
        group = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + self._start[rows]
        share = 1.0 / lengths[rows]
        cells = placement[rows] * self._of_group.shape[1] + group
        self._count = np.bincount(placement, minlength=len(self._count)).astype(np.float64)
        seen: Floats = np.bincount(cells, share, self._of_group.size).astype(np.float64)
        self._seen = seen.reshape(self._of_group.shape)
        for _ in range(ROUNDS):
            local = np.bincount(rows, self._of_group.ravel()[cells] * share, minlength=len(ratio))
            rest = ratio - local
            self._all = float((rest - self._of_placement[placement]).sum() / (len(ratio) + SHRINK))
            total = np.bincount(placement, rest - self._all, minlength=len(self._count))
            self._of_placement = total / (self._count + SHRINK)
            rest = ratio - self._all - self._of_placement[placement]
            sums = np.bincount(cells, share * rest[rows], self._of_group.size).reshape(self._of_group.shape)
            self._of_group = sums / (self._seen + SHRINK)
        rest = ratio - self._all - self._of_placement[placement]
        self._sd = _deviation(rest)
        self._sd_placement = _deviation(self._of_placement[self._count > 0])

    def guess(self) -> Effects:
        """The most likely effects."""
        return Effects.of(self._mean()[None])

    def draws(self, count: int, rng: np.random.Generator) -> Effects:
        """The most likely effects, then `count` - 1 draws from what they may be."""
        mean = self._mean()
        drawn = np.broadcast_to(mean, (count, *mean.shape)).copy()
        size = (count - 1, *mean.shape)
        drawn[1:] += BOLD * rng.standard_normal(size) * self._sd / np.sqrt(1.0 + self._seen / SHRINK)
        whole = BOLD * rng.standard_normal(size[:2]) * self._sd_placement / np.sqrt(1.0 + self._count / SHRINK)
        drawn[1:] += whole[:, :, None]
        return Effects.of(drawn)

    def _mean(self) -> Floats:
        return self._all + self._of_placement[:, None] + self._of_group


def _deviation(rest: Floats) -> float:
    """Standard deviation around zero, with the prior's weight."""
    return float(np.sqrt((np.sum(rest**2) + PRIOR_WORTH * PRIOR_SD**2) / (len(rest) + PRIOR_WORTH)))
