"""What the surrogate says of plans, corrected by what has been measured; asking it costs no evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hetrl.agents.hybrid.correction import Correction, Effects, Segments
from hetrl.agents.hybrid.output_errors import OutputErrors
from hetrl.agents.ledger import Ledger
from hetrl.envs.evaluate import Outcomes, evaluate
from hetrl.fidelity import usual_output_error

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
FAILURES_WORTH = 2.0  # measurements that the belief in a placement which only failed so far is worth
BOLD_ERROR = 0.15  # by which a belief's output errors differ from the best guess's, on the logarithm


@dataclass(frozen=True)
class Beliefs:
    """D beliefs: about times, and by which factor (D,) output errors differ from the best guess."""

    effects: Effects
    off_by: Floats


class Ranking:
    """Ranks plans for one run, and learns from the ledger's trials."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._space = ledger.space
        self.trusted = ledger.device is ledger.space.device  # the surrogate is the device: nothing to correct
        self._correction = Correction(ledger.space)
        self._errors = OutputErrors(ledger.space)
        self._error_limit = ledger.objective.max_output_error or usual_output_error(ledger.device.graph)
        self._learned = 0  # trials that were taken in
        self._fates = np.zeros(
            (2, ledger.space.groups, len(ledger.space.options))
        )  # groups' placements: failed, worked

    def learn(self) -> None:
        """Take in the trials that are new."""
        trials = [t for t in self._ledger.trials[self._learned :] if t.decisions is not None]
        self._learned = len(self._ledger.trials)
        if self.trusted or not trials:
            return
        plans = np.array([t.decisions for t in trials], dtype=np.int64).T
        predicted = self._predicted(plans)
        measured = self._ledger.recall(plans)
        batch, _ = self._space.schedules(plans)
        off_by = np.array([np.nan if t.output_error is None else t.output_error for t in trials])
        self._errors.learn(batch.option, off_by)
        worked = np.isfinite(measured.latency_ms)
        for fate in (0, 1):
            # By what all groups in fewer bits add up to, not by one placement.
            explained = (fate == 0) & np.isfinite(off_by) & self._errors.explains(batch.option)
            of = np.flatnonzero((worked == bool(fate)) & ~explained)
            np.add.at(self._fates[fate], (np.arange(self._space.groups)[:, None], batch.option[:, of]), 1)
        took = Segments.of(self._space, batch, measured.segment_ms)
        self._correction.learn(Segments.of(self._space, batch, predicted.segment_ms), took.ms)

    def beliefs(self, count: int, rng: np.random.Generator) -> Beliefs | None:
        """What the correction may be: the best guess, then draws from what is not known yet; None for no correction."""
        if self.trusted:
            return None
        off_by = np.exp(BOLD_ERROR * rng.standard_normal(count))
        off_by[0] = 1.0
        return Beliefs(self._correction.draws(count, rng), off_by)

    def outcomes(self, plans: Ints, beliefs: Beliefs | None = None, which: Ints | None = None) -> Outcomes:
        """Outcomes (B,) of complete decisions (length, B), with latencies as the belief `which` (B,) has them.

        :param beliefs: the best guess by default.
        """
        predicted = self._predicted(plans)
        if self.trusted:
            return predicted
        if beliefs is None or which is None:
            beliefs, which = Beliefs(self._correction.guess(), np.ones(1)), np.zeros(plans.shape[1], dtype=np.int64)
        batch, _ = self._space.schedules(plans)
        segments = Segments.of(self._space, batch, predicted.segment_ms)
        size = plans.shape[1]
        plain = np.bincount(segments.plan, segments.ms, minlength=size)
        moved = np.bincount(segments.plan, segments.ms * segments.factors(beliefs.effects, which), minlength=size)
        factor = np.divide(moved, plain, out=np.ones(size), where=np.isfinite(plain) & (plain > 0))
        latency_ms = predicted.latency_ms * factor * self._risk(batch.option)
        over = self._errors.of(batch.option) * beliefs.off_by[which] / self._error_limit
        # As the objective does it: what breaks a budget ranks behind a plan that keeps all.
        behind = self._ledger.reference_ms + latency_ms * over
        return replace(predicted, latency_ms=np.where(over > 1, behind, latency_ms))

    def costs(self, plans: Ints, beliefs: Beliefs | None = None, which: Ints | None = None) -> Floats:
        """(B,) the objective's numbers of `outcomes`, in ms."""
        known = self.outcomes(plans, beliefs, which)
        return self._ledger.objective.cost_ms(
            known.latency_ms, known.accuracy_drop_pct, known.frame_drop_rate, self._ledger.reference_ms
        )

    def _predicted(self, plans: Ints) -> Outcomes:
        return evaluate(self._space, self._space.device, self._ledger.condition, plans)

    def _risk(self, option: Ints) -> Floats:
        """(B,) what a plan's latency is multiplied by for a placement that has only failed so far."""
        chance = np.maximum(_chance(*self._fates), _chance(*self._fates.sum(axis=1, keepdims=True)))
        worst = chance[np.arange(len(option))[:, None], option].max(axis=0)
        risk: Floats = 1.0 / (1.0 - worst)
        return risk


def _chance(failed: Floats, worked: Floats) -> Floats:
    """That a placement fails again, of a group or of any: 0 once it worked, since something else was the reason."""
    return np.where(worked == 0, failed / (failed + FAILURES_WORTH), 0.0)
