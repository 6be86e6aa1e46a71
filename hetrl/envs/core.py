"""The batched environment under every interface: B plans are decided side by side, one decision each per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from hetrl.envs.evaluate import Outcomes
from hetrl.envs.features import dynamic_size, static_features
from hetrl.envs.masks import MaskTables
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
    :param pinned: granularities of the first plans, which they do not choose.
    """

    def __init__(
        self,
        space: PlanSpace,
        objective: Objective,
        evaluator: Evaluator,
        reference_ms: float,
        size: int,
        *,
        pinned: Sequence[Granularity] = (),
    ) -> None:
        self.space = space
        self.objective = objective
        self.reference_ms = reference_ms
        self.size = size
        self._evaluator = evaluator
        self._masks = MaskTables(space)
        self._pinned = np.array([GRANULARITIES.index(g) for g in pinned], dtype=np.int64)
        self._static = static_features(space)
        self._first_choice = np.cumsum([0, *(len(d.choices) for d in space.globals)])  # column in `_dynamic`
        self._columns = np.arange(size)
        self.lost: Bools = np.zeros(size, dtype=np.bool_)
        self._begin()

    def _begin(self) -> None:
        """Nothing is decided."""
        self.step_number = 0
        self._taken: Ints = np.zeros((self.space.length, self.size), dtype=np.int64)
        self._dynamic = np.zeros((self.size, dynamic_size(self.space)), dtype=np.float32)
        self._placed: Ints = np.zeros(self.size, dtype=np.int64)  # option of the segment at hand
        self._length: Ints = np.zeros(self.size, dtype=np.int64)  # and how many groups it has
        self._plan_rows: Ints = np.zeros(self.size, dtype=np.int64)
        self._mask = self._next_mask()
        self._mask[: len(self._pinned)] = False
        self._mask[self._columns[: len(self._pinned)], self._pinned] = True

    def reset(self) -> Floats:
        """Begin B new plans; observations (B, F)."""
        self._begin()
        return self.observe()

    def masks(self) -> Bools:
        """(B, width) legal choices of the decision at hand."""
        return self._mask

    def decisions(self, index: int) -> Ints:
        """(steps,) decisions taken so far of one plan."""
        return self._taken[: self.step_number, index].copy()

    def step(self, actions: Ints) -> tuple[npt.NDArray[np.float64], Bools, Finished | None]:
        """Take one decision per plan; an illegal one becomes the lowest legal one.

        :return: rewards (B,), which decisions were repaired (B,), and the finished plans after the last decision.
        """
        wrong = ~self._mask[self._columns, actions]
        chosen = np.where(wrong, self._mask.argmax(axis=1), actions) if wrong.any() else actions
        self._taken[self.step_number] = chosen
        self.step_number += 1
        if self.step_number < self.space.length:
            self._advance(chosen)
            return np.zeros(self.size), wrong, None
        outcomes = self._evaluator(self._taken)
        cost = self.objective.cost_ms(
            outcomes.latency_ms, outcomes.accuracy_drop_pct, outcomes.frame_drop_rate, self.reference_ms
        )
        rewards = np.where(self.lost, 0.0, np.log(self.reference_ms / cost))
        return rewards, wrong, Finished(self._taken.copy(), outcomes, cost)

    def _advance(self, chosen: Ints) -> None:
        """Go on to the next decision of each plan."""
        step, dynamic = self.step_number - 1, self._dynamic
        if step < len(self.space.globals):
            dynamic[self._columns, self._first_choice[step] + chosen] = 1.0
        else:
            options = self._first_choice[-1]
            begins = chosen != CONTINUE
            dynamic[self._columns, options + self._placed] = 0.0
            self._placed += begins * (chosen - 1 - self._placed)
            self._length *= ~begins
            self._length += 1
            dynamic[self._columns, options + self._placed] = 1.0
            dynamic[:, -1] = self._length / self.space.groups
        self._mask = self._next_mask()

    def _next_mask(self) -> Bools:
        """(B, width) what is legal now; see `PlanSpace.mask`."""
        step, first = self.step_number, len(self.space.globals)
        if step < first:
            legal = np.zeros((self.size, self.space.width), dtype=np.bool_)
            legal[:, : len(self.space.globals[step].choices)] = True
            return legal
        if step == first:
            self._plan_rows = self._masks.plan_rows(self._taken[0], self._taken[2])
        return self._masks.look_up(step - first, self._plan_rows, self._placed, self._length)

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
        static = self._static[min(self.step_number, self.space.length - 1)]
        seen = np.empty((self.size, len(static) + self._dynamic.shape[1]), dtype=np.float32)
        seen[:, : len(static)] = static
        seen[:, len(static) :] = self._dynamic
        return seen
