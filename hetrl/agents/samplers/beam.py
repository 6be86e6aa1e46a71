"""Beam search: plans are completed group by group on the surrogate, and the best of them measured.

A partial plan is judged by what the surrogate says of it with its remaining groups placed as in the best plan so far,
or on one processor. Every round is twice as wide as the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.ledger import Ledger
from hetrl.agents.samplers.annealing import whole_model
from hetrl.agents.samplers.drafts import Draft, Drawer, Floats, Ints
from hetrl.agents.samplers.settings import at_least
from hetrl.envs.evaluate import evaluate
from hetrl.envs.space import CONTINUE, PlanSpace


class BeamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """
    :param width: partial plans that the first round keeps.
    :param widest: those that the last one does.
    """

    width: int = 8
    widest: int = 128

    def __post_init__(self) -> None:
        at_least(self, "width", 1)
        at_least(self, "widest", self.width)


def _propose(run: AgentRun, config: BeamConfig) -> None:
    ledger = run.ledger
    drawer = Drawer(ledger.space, ledger.objective)
    width = config.width
    while not ledger.exhausted and width <= config.widest:
        tails = whole_model(drawer)
        if ledger.best is not None and ledger.best.trial.decisions is not None:
            tails = [drawer.draft(np.array(ledger.best.trial.decisions, dtype=np.int64)), *tails]
        plans = np.hstack([grown(ledger, drawer, heads, tails, width) for heads in _heads(drawer, tails[0])])
        plans = plans[:, np.argsort(_predicted(ledger, plans), kind="stable")]
        plans = plans[:, ~ledger.measured(ledger.space.canonical(plans))]
        ledger.outcomes(plans[:, :width], run.name)
        width *= 2


def _heads(drawer: Drawer, draft: Draft) -> list[Ints]:
    """The global decisions of a draft, and those that differ in one."""
    found = [draft.heads]
    for decision in drawer.free:
        for choice in drawer.choices(decision):
            if choice != draft.heads[decision]:
                changed = draft.heads.copy()
                changed[decision] = choice
                found.append(changed)
    return found


def grown(ledger: Ledger, drawer: Drawer, heads: Ints, tails: Sequence[Draft], width: int) -> Ints:
    """(length, up to `width`) complete plans with the given global decisions, grown from the first group on."""
    space, first = ledger.space, len(drawer.space.globals)
    ends = [drawer.settle(Draft(heads, tail.wanted, tail.begins)) for tail in tails]
    taken = ends[0][:, None]
    for step in range(first, space.length):
        choices, columns = np.nonzero(space.mask(step, taken))
        more = taken[:, columns]
        more[step] = choices
        costs = np.min([_predicted(ledger, completed(space, more, step, end)) for end in ends], axis=0)
        taken = more[:, np.argsort(costs, kind="stable")[:width]]
    return taken


def completed(space: PlanSpace, taken: Ints, step: int, end: Ints) -> Ints:
    """(length, B) decisions of which those up to `step` are kept, and the others are as in the plan `end` (length,)."""
    plans = taken.copy()
    plans[step + 1 :] = end[step + 1 :, None]
    if step + 1 < space.length:
        here = len(space.globals)
        option = space.schedules(end[:, None])[0].option[step + 1 - here, 0]
        placed = space.schedules(plans)[0].option[step - here]
        plans[step + 1] = np.where((placed == option) & space.single[option], CONTINUE, 1 + option)
    return plans


def _predicted(ledger: Ledger, taken: Ints) -> Floats:
    """(B,) the surrogate's costs, in ms."""
    space = ledger.space
    found = evaluate(space, space.device, ledger.condition, taken)
    return ledger.objective.cost_ms(
        found.latency_ms, found.accuracy_drop_pct, found.frame_drop_rate, ledger.reference_ms
    )


beam = Method(
    "beam search on the surrogate, whose best plans are measured",
    BeamConfig,
    lambda budget: BeamConfig(),
    _propose,
)
