"""Every evaluation of a run: counted against the budget, never repeated, written down as it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetrl.agents.trials import Trial, TrialLog
from hetrl.condition import Condition
from hetrl.device_bridge.base import Device
from hetrl.envs.evaluate import Outcomes, evaluate, of_decisions, of_measurements, require_present
from hetrl.envs.space import GRANULARITIES, Granularity, PlanSpace
from hetrl.measurement import Measurement
from hetrl.objective import Objective
from hetrl.plan import MadeBy, Plan

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Best:
    """The best plan so far: its decisions, or the plan itself where the space does not hold it."""

    cost_ms: float
    trial: Trial


class Ledger:
    """Evaluates plans on the user's device.

    :param budget: distinct plans that may be measured in all.
    :param log: where evaluations are written; None keeps them in memory alone.
    :param known: trials of an earlier part of the same run: their plans are not measured again, and count.
    :param update: called after every batch of new evaluations.
    :ivar watch: called with the number of evaluations after each that is no earlier part's, if anybody watches.
    """

    def __init__(
        self,
        space: PlanSpace,
        device: Device,
        condition: Condition,
        objective: Objective,
        budget: int,
        *,
        log: TrialLog | None = None,
        known: Sequence[Trial] = (),
        update: Callable[[int, float | None], None] | None = None,
    ) -> None:
        self.space = space
        self.device = device
        self.condition = condition
        self.objective = objective
        self.budget = budget
        self.trials: list[Trial] = []
        self.best: Best | None = None
        self.reference_ms = np.inf
        self.watch: Callable[[int], None] | None = None
        self._log = log
        self._update = update
        self._known: dict[str, Trial] = {}
        self._replayed = {trial.key: trial for trial in known}

    @property
    def evaluations(self) -> int:
        """Distinct plans measured so far."""
        return len(self.trials)

    @property
    def exhausted(self) -> bool:
        """Whether no further plan may be measured."""
        return self.evaluations >= self.budget

    def known(self, plan: Plan) -> Trial | None:
        """The evaluation of a plan, None if there was none."""
        taken = self.space.encode(plan)
        return self._known.get(plan.key if taken is None else column_key(taken))

    def measure(self, plan: Plan, by: str) -> Trial:
        """Evaluate one plan that need not be in the space."""
        taken = self.space.encode(plan)
        if taken is not None:
            self.outcomes(taken[:, None], by)
            return self._known[column_key(taken)]
        key = plan.key
        if key not in self._known:
            earlier = self._replayed.get(key)
            if earlier is None:
                measured = self.device.measure(plan, self.condition)
                require_present(measured, self.device)
                drop_pct = np.array([self.space.drops.of_plan(plan)])
                outcome = of_measurements([measured], drop_pct, self.space.groups).at(0)
                trial = Trial.of(self.evaluations, by, outcome, key=key, plan=plan, measured=measured)
                self._add(trial, new=True)
            else:
                self._add(earlier, new=False)
            self._tell()
        return self._known[key]

    def outcomes(self, taken: Ints, by: str) -> Outcomes:
        """Outcomes of (length, B) complete decisions.

        Plans that were measured before are answered from memory. Once the budget is spent, plans that are new stay
        NaN: nothing is learnt from them.
        """
        same = self.space.canonical(taken)
        keys = [column_key(same[:, b]) for b in range(same.shape[1])]
        fresh: dict[str, int] = {}
        for b, key in enumerate(keys):
            if key not in self._known and key not in fresh and self.evaluations + len(fresh) < self.budget:
                fresh[key] = b
        unmeasured = [b for key, b in fresh.items() if key not in self._replayed]
        if self.device is self.space.device and unmeasured:  # a surrogate answers a batch as fast as one
            answers = evaluate(self.space, self.device, self.condition, same[:, unmeasured])
            place = {b: i for i, b in enumerate(unmeasured)}
        for key, b in fresh.items():
            if key in self._replayed:
                self._add(self._replayed[key], new=False)
                continue
            measured: Measurement | None = None
            if self.device is not self.space.device:  # each is written down as it ends
                measured = self.device.measure(self.space.plan(same[:, b]), self.condition)
                require_present(measured, self.device)
                answers, place = of_decisions(self.space, [measured], same[:, [b]]), {b: 0}
            decisions = tuple(int(d) for d in same[:, b])
            outcome = answers.at(place[b])
            ends = self.space.segment_ends(same[:, b])
            spent = answers.segment_ms[place[b], ends]
            took = () if np.isnan(spent).any() else tuple(round(float(t), 6) for t in spent)
            trial = Trial.of(
                self.evaluations, by, outcome, key=key, decisions=decisions, segments_ms=took, measured=measured
            )
            self._add(trial, new=True)
            if self.device is not self.space.device:
                self._tell()
        if fresh:
            self._tell()
        return self._recall([self._known.get(key) for key in keys])

    def measured(self, same: Ints) -> Bools:
        """(B,) which of (length, B) canonical decisions have been measured."""
        return np.array([column_key(same[:, b]) in self._known for b in range(same.shape[1])], dtype=np.bool_)

    def recall(self, same: Ints) -> Outcomes:
        """Outcomes of (length, B) canonical decisions, NaN where they have not been measured."""
        return self._recall([self._known.get(column_key(same[:, b])) for b in range(same.shape[1])])

    def _recall(self, found: Sequence[Trial | None]) -> Outcomes:
        """Trials as arrays, NaN for those that there are not."""
        outcomes = Outcomes.empty(len(found), self.space.groups)
        for b, trial in enumerate(found):
            if trial is None:
                continue
            outcomes.set(b, trial.outcome)
            if trial.segments_ms and trial.decisions is not None:
                outcomes.segment_ms[b] = 0.0
                outcomes.segment_ms[b, self.space.segment_ends(np.array(trial.decisions))] = trial.segments_ms
        return outcomes

    def cost_ms(self, trial: Trial) -> float:
        """The objective's number for one trial."""
        latency, accuracy, frames = (np.array([v]) for v in trial.outcome[:3])
        return float(self.objective.cost_ms(latency, accuracy, frames, self.reference_ms)[0])

    def keeps(self, trial: Trial) -> bool:
        """Whether a trial worked, is inside the budgets, and is of the network as it was given."""
        if trial.latency_ms is None or (trial.plan is not None and trial.plan.stretched):
            return False
        return self.objective.keeps(trial.accuracy_drop_pct, trial.frame_drop_rate)

    def plan(self, trial: Trial, made_by: MadeBy | None) -> Plan:
        """The plan of a trial."""
        if trial.plan is not None:
            return trial.plan
        assert trial.decisions is not None  # a trial has one of the two
        return self.space.plan(np.array(trial.decisions, dtype=np.int64), made_by)

    def _add(self, trial: Trial, *, new: bool) -> None:
        trial = trial.numbered(self.evaluations)
        self._known[trial.key] = trial
        self.trials.append(trial)
        if new and self._log is not None:
            self._log.append(trial)
        if self.keeps(trial) and (self.best is None or self.cost_ms(trial) < self.best.cost_ms):
            self.best = Best(self.cost_ms(trial), trial)
        if new and self.watch is not None:
            self.watch(self.evaluations)

    def _tell(self) -> None:
        if self._update is not None:
            self._update(self.evaluations, self.best.cost_ms if self.best else None)


def column_key(decisions: Ints) -> str:
    """Name of one canonical column of decisions."""
    return "d" + ".".join(str(int(d)) for d in decisions)


def is_sound(trial: Trial, space: PlanSpace) -> bool:
    """Whether a trial read from a file is one that a ledger over this space may have written."""
    if trial.latency_ms is not None and not (np.isfinite(trial.latency_ms) and trial.latency_ms > 0):
        return False
    if trial.output_error is not None and not 0 <= trial.output_error < np.inf:
        return False
    if trial.decisions is None:
        return trial.plan is not None and trial.key == trial.plan.key and not trial.segments_ms
    taken = np.array(trial.decisions, dtype=np.int64)
    placed = taken.copy()
    placed[:1] = GRANULARITIES.index(Granularity.INTRA_OP)  # the canonical form leaves it out
    if trial.plan is not None or not space.is_legal(placed) or trial.key != column_key(taken):
        return False
    return len(trial.segments_ms) in (0, len(space.segment_ends(taken)))
