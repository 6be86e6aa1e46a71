"""What measured timelines say about the surrogate: which placements it takes for faster or slower than they are.

For every measured segment r = log(measured / predicted). The model is a sum of effects with normal priors: one for all,
one per placement, one per placement and fusion group, of which a segment has the mean (by predicted times), and one per
placement for a segment as such, the larger the shorter it is, since an engine puts its operands into an order of its
own. How far effects spread and how much segments differ beyond them is estimated from the same ratios (a mixed
model with empirical priors), so that one measurement is believed where segments repeat, and many are averaged where
they do not. Draws from what is left open let those who search try what the surrogate may be wrong about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetrl.agents.segment_costs import work_ms
from hetrl.device_bridge.surrogate.cost_model import Schedules
from hetrl.device_bridge.surrogate.tables import MEMORIES
from hetrl.envs.space import PlanSpace
from hetrl.plan import DEFAULT_QUEUE_WINDOW

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ROUNDS = 4
SHRINK = 1.0  # placements that the prior of the effect for all is worth
BOLD = 2.0  # standard deviations of a draw; with 1, machines whose groups differ by factors of 2 took twice as long
MOST_OVERHEAD = 3.0  # of a typical group's time over a segment's own: what takes no time would say too much
LEAST_WEIGHT = 1e-3  # of a group, in typical groups' times
NOISE_SD = 0.05  # a measured median of a segment
PRIOR_SD_GROUP = 0.3  # of an engine that nobody calibrated; with half of it plans are found a little later
PRIOR_SD, PRIOR_WORTH = 0.15, 4.0  # a surrogate's error on a network that it never saw (docs/calibration.md)


@dataclass(frozen=True)
class Effects:
    """D beliefs.

    :param cumulative: logarithms of factors times weights, (D, placements, groups + 1).
    :param weights: cumulative too, (placements, groups + 1).
    :param overhead: (D, placements) logarithm of what a segment takes on top, for a segment as long as a typical group;
        a longer one has less of it.
    """

    cumulative: Floats
    weights: Floats
    overhead: Floats
    typical_ms: float

    @staticmethod
    def of(effects: Floats, weights: Floats, overhead: Floats, typical_ms: float) -> Effects:
        """From (D, placements, groups) logarithms, (placements, groups) weights and (D, placements) overheads."""
        return Effects(_sums(effects * weights), _sums(weights), overhead, typical_ms)


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
        first, last = (self.placement, self.start), (self.placement, self.end + 1)
        effect = beliefs.cumulative[belief, *last] - beliefs.cumulative[belief, *first]
        effect /= beliefs.weights[last] - beliefs.weights[first]
        more = beliefs.overhead[belief, self.placement] * self.overhead_share(beliefs.typical_ms)
        factors: Floats = np.exp(effect + more)
        return factors

    def overhead_share(self, typical_ms: float) -> Floats:
        """(S,) a typical group's time as a share of each segment's, bounded; 0 for what takes no time."""
        share = np.divide(typical_ms, self.ms, out=np.zeros(len(self.ms)), where=self.ms > 0)
        return np.minimum(share, MOST_OVERHEAD)


class Correction:
    """Factors on the surrogate's times of segments, and how sure they are."""

    def __init__(self, space: PlanSpace) -> None:
        self._placements, self._groups = len(space.options) * len(MEMORIES), space.groups
        self._weights = _group_ms(space)
        size = 2 + self._groups  # unknowns of a placement: its own effect, its overhead, then those of its groups
        self._typical_ms = 0.0  # of a fusion group, the unit of overheads
        self._squares = np.zeros((self._placements, size, size))  # X'X of each placement's segments
        self._sums = np.zeros((self._placements, size))  # X'r
        self._ratio_squares = np.zeros(self._placements)  # r'r
        self._all = 0.0
        self._sd = Deviations()
        self._posteriors: dict[int, _Posterior] = {}

    def learn(self, predicted: Segments, measured_ms: Floats) -> None:
        """Take in what segments that were predicted have taken, and fit anew."""
        with np.errstate(invalid="ignore"):
            known = (predicted.ms > 0) & (measured_ms > 0) & np.isfinite(measured_ms)
        if not known.any():
            return
        start, end, placement = predicted.start[known], predicted.end[known], predicted.placement[known]
        ratio = np.log(measured_ms[known] / predicted.ms[known])
        group = np.arange(self._groups)
        self._typical_ms = self._typical_ms or float(predicted.ms[known].sum() / (end - start + 1).sum())
        overhead = predicted.overhead_share(self._typical_ms)[known]
        inside = ((group >= start[:, None]) & (group <= end[:, None])) * self._weights[placement]
        shares = inside / inside.sum(axis=1, keepdims=True)
        rows = np.hstack([np.ones((len(ratio), 1)), overhead[:, None], shares])
        for p in np.unique(placement).tolist():
            mine = placement == p
            self._squares[p] += rows[mine].T @ rows[mine]
            self._sums[p] += rows[mine].T @ ratio[mine]
            self._ratio_squares[p] += ratio[mine] @ ratio[mine]
        self._fit()

    def _fit(self) -> None:
        """Posteriors of all placements, then what they say of the prior: a few steps of expectation maximisation."""
        for _ in range(ROUNDS):
            found = self._regressions().values()
            self._sd = Deviations.of(list(found))
            self._all = sum(self._all + float(one.mean[0]) for one in found) / (len(found) + SHRINK)
        self._posteriors = self._regressions()

    def _regressions(self) -> dict[int, _Posterior]:
        """Of every placement that was seen."""
        return {
            p: _Posterior.of(self._squares[p], self._sums[p], self._ratio_squares[p], self._all, self._sd)
            for p in np.flatnonzero(self._squares[:, 0, 0]).tolist()
        }

    def guess(self) -> Effects:
        """The most likely effects."""
        mean = np.zeros((1, self._placements, 2 + self._groups))
        for p, posterior in self._posteriors.items():
            mean[0, p] = posterior.mean
        return self._effects(mean)

    def draws(self, count: int, rng: np.random.Generator) -> Effects:
        """The most likely effects, then `count` - 1 draws from what they may be."""
        drawn = rng.standard_normal((count, self._placements, 2 + self._groups)) * BOLD
        drawn[0] = 0.0
        for p in range(self._placements):
            posterior = self._posteriors.get(p)
            if posterior is None:
                drawn[:, p] *= self._sd.of_unknowns(self._groups)
            else:
                drawn[:, p] = posterior.mean + drawn[:, p] @ posterior.root.T
        return self._effects(drawn)

    def _effects(self, unknowns: Floats) -> Effects:
        """Of (D, placements, 2 + groups) numbers."""
        own, overhead, groups = unknowns[:, :, :1], unknowns[:, :, 1], unknowns[:, :, 2:]
        return Effects.of(self._all + own + groups, self._weights, overhead, self._typical_ms)


def _sums(values: Floats) -> Floats:
    """Of the first 0, 1, ... numbers along the last axis."""
    sums: Floats = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
    return sums


def _group_ms(space: PlanSpace) -> Floats:
    """(placements, groups) predicted times, where there is none next to nothing."""
    model = space.device.cost_model()
    idle = (1.0,) * len(space.engine.processors)
    times = np.stack([work_ms(model, m, DEFAULT_QUEUE_WINDOW, None, idle)[:, :, 0] for m in MEMORIES])  # (M, groups, O)
    known = np.isfinite(times) & (times > 0)
    floor = LEAST_WEIGHT * (float(np.median(times[known])) if known.any() else 1.0)
    filled = np.maximum(np.where(known, times, floor), floor)
    return np.ascontiguousarray(filled.transpose(2, 0, 1).reshape(-1, space.groups))


@dataclass(frozen=True)
class Deviations:
    """Standard deviations: of placements' effects, overheads, groups' effects, and of what segments differ by."""

    placement: float = PRIOR_SD
    overhead: float = PRIOR_SD
    group: float = PRIOR_SD_GROUP
    noise: float = NOISE_SD

    def of_unknowns(self, groups: int) -> Floats:
        """(2 + groups,) those of a placement's unknowns."""
        return np.array([self.placement, self.overhead, *[self.group] * groups])

    @staticmethod
    def of(posteriors: Sequence[_Posterior]) -> Deviations:
        """What posteriors make of them; the prior counts as a few observations."""

        def deviation(total: float, count: float, prior_sd: float) -> float:
            return float(np.sqrt((total + PRIOR_WORTH * prior_sd**2) / (count + PRIOR_WORTH)))

        second = [one.mean**2 + one.variance for one in posteriors]
        groups = [moments[2:][one.touched] for moments, one in zip(second, posteriors, strict=True)]
        return Deviations(
            deviation(sum(float(moments[0]) for moments in second), len(second), PRIOR_SD),
            deviation(sum(float(moments[1]) for moments in second), len(second), PRIOR_SD),
            deviation(sum(float(g.sum()) for g in groups), sum(map(len, groups)), PRIOR_SD_GROUP),
            deviation(sum(one.rest for one in posteriors), sum(one.count for one in posteriors), NOISE_SD),
        )


@dataclass(frozen=True)
class _Posterior:
    """Of one placement's unknowns: its own effect, its overhead, then those of its groups.

    :param root: a square root of the covariance.
    :param touched: (groups,) which were in a segment of it.
    :param count: its segments.
    :param rest: expected sum of squares of what is left of their ratios.
    """

    mean: Floats
    root: Floats
    touched: npt.NDArray[np.bool_]
    count: float
    rest: float

    @property
    def variance(self) -> Floats:
        total: Floats = (self.root**2).sum(axis=1)
        return total

    @staticmethod
    def of(squares: Floats, sums: Floats, ratio_squares: float, level: float, sd: Deviations) -> _Posterior:
        """Bayesian linear regression.

        :param squares: X'X, `sums` X'r and `ratio_squares` r'r of the placement's segments.
        :param level: of the ratios of all placements.
        """
        count = float(squares[0, 0])
        ones = squares[0]  # X'1: every row begins with a 1
        wanted = sums - level * ones
        around = ratio_squares - 2 * level * sums[0] + level**2 * count
        prior = sd.of_unknowns(len(sums) - 2) ** -2.0
        root = np.linalg.inv(np.linalg.cholesky(squares / sd.noise**2 + np.diag(prior))).T
        mean = root @ (root.T @ wanted) / sd.noise**2
        left = around - 2 * mean @ wanted + mean @ squares @ mean
        uncertain = float(((squares @ root) * root).sum())
        return _Posterior(mean, root, squares.diagonal()[2:] > 0, count, max(0.0, float(left)) + uncertain)
