"""The batched environment under every interface: B plans are decided side by side, one decision each per step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from hetrl.envs.evaluate import Outcomes
from hetrl.envs.features import dynamic_size, static_features
from hetrl.envs.space import CONTINUE, GRANULARITIES, Granularity, PlanSpace
from hetrl.objective import Objective

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Evaluator = Callable[[Ints], Outcomes]


@dataclass(frozen=True)
class Finished:
    """What complete plans gave: decisions (length, B) and their outcomes; `cost_ms` is the objective's."""

    taken: Ints
    outcomes: Outcomes
    cost_ms: npt.NDArray[np.float64]


class PartitionCore:
    """State of B plans in the making. All take their decisions in lockstep, since all plans have the same length.

    The reward of a complete plan is `log(reference_ms / cost_ms)`, that of every other step 0. So it is where the
    device went away while it ran the plan (`lost`): that says nothing of the plan.

    :param evaluator: (length, B) complete decisions -> outcomes.
    :param reference_ms: latency of a plan that keeps every budget; the scale of rewards.
    :param pinned: so many of the plans may only be of granularity `intra_op`.
    """

    def __init__(
        self,
        space: PlanSpace,
        objective: Objective,
        evaluator: Evaluator,
        reference_ms: float,
        size: int,
        *,
        pinned: int = 0,
    ) -> None:
        self.space = space
        self.objective = objective
        self.reference_ms = reference_ms
        self.size = size
        self._evaluator = evaluator
        self._static = static_features(space)
        self._dynamic_size = dynamic_size(space)
        self._taken: Ints = np.zeros((space.length, size), dtype=np.int64)
        self.step_number = 0
        self.lost: Bools = np.zeros(size, dtype=np.bool_)
        self._pinned = pinned
        self._mask = self._first_mask()

    def reset(self) -> Floats:
        """Begin B new plans; observations (B, F)."""
        self._taken = np.zeros_like(self._taken)
        self.step_number = 0
        self._mask = self._first_mask()
        return self.observe()

    def _first_mask(self) -> Bools:
        mask = self.space.mask(0, self._taken)
        mask[:, : self._pinned] = False
        mask[GRANULARITIES.index(Granularity.INTRA_OP), : self._pinned] = True
        return mask

    def masks(self) -> Bools:
        """(B, width) legal choices of the decision at hand."""
        return self._mask.T

    def decisions(self, index: int) -> Ints:
        """(steps,) decisions taken so far of one plan."""
        return self._taken[: self.step_number, index].copy()

    def step(self, actions: Ints) -> tuple[npt.NDArray[np.float64], Bools, Finished | None]:
        """Take one decision per plan; an illegal one becomes the lowest legal one.

        :return: rewards (B,), which decisions were repaired (B,), and the finished plans after the last decision.
        """
        columns = np.arange(self.size)
        wrong = ~self._mask[actions, columns]
        chosen = np.where(wrong, self._mask.argmax(axis=0), actions)
        self._taken[self.step_number] = chosen
        self.step_number += 1
        rewards = np.zeros(self.size)
        if self.step_number < self.space.length:
            self._mask = self.space.mask(self.step_number, self._taken)
            return rewards, wrong, None
        outcomes = self._evaluator(self._taken)
        cost = self.objective.cost_ms(
            outcomes.latency_ms, outcomes.accuracy_drop_pct, outcomes.frame_drop_rate, self.reference_ms
        )
        rewards = np.where(self.lost, 0.0, np.log(self.reference_ms / cost))
        return rewards, wrong, Finished(self._taken.copy(), outcomes, cost)

    def final_infos(self, finished: Finished) -> dict[str, npt.NDArray[Any]]:
        """What is known of complete plans, (B,) each, NaN where there is no number.

        But for `decisions`, (B, length), and `segment_ms`, (B, groups).
        """
        known = finished.outcomes
        over = self.objective.violation(known.accuracy_drop_pct, known.frame_drop_rate)
        return {
            **{field.name: getattr(known, field.name) for field in fields(known)},
            "cost_ms": finished.cost_ms,
            "keeps_budgets": np.isfinite(known.latency_ms) & (over == 0),
            "decisions": finished.taken.T,
        }

    def close(self) -> None:
        """Let go of what evaluates plans; may be called twice."""

    def observe(self) -> Floats:
        """(B, F) float32: the decision at hand, its fusion group and the next ones, and what was decided so far."""
        step, first = self.step_number, len(self.space.globals)
        step = min(step, self.space.length - 1)
        dynamic = np.zeros((self.size, self._dynamic_size), dtype=np.float32)
        columns = np.arange(self.size)
        at = 0
        for number, decision in enumerate(self.space.globals):
            if number < step:
                dynamic[columns, at + self._taken[number]] = 1.0
            at += len(decision.choices)
        if step > first:
            codes = self._taken[first:step]
            start = np.where(codes != CONTINUE, np.arange(len(codes))[:, None], 0).max(axis=0)
            dynamic[columns, at + codes[start, columns] - 1] = 1.0
            dynamic[:, -1] = (len(codes) - start) / self.space.groups
        return np.hstack([np.broadcast_to(self._static[step], (self.size, self._static.shape[1])), dynamic])
