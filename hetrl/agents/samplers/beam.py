"""Beam search: plans are grown group by group on the surrogate, and the best of them measured.

Every round is twice as wide as the one before it.
"""

from __future__ import annotations

import msgspec
import numpy as np

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.hybrid.growing import grown
from hetrl.agents.ledger import Ledger
from hetrl.agents.samplers.annealing import whole_model
from hetrl.agents.samplers.drafts import Draft, Drawer, Floats, Ints
from hetrl.agents.samplers.settings import at_least
from hetrl.envs.evaluate import evaluate


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

        def costs(plans: Ints) -> Floats:
            return _predicted(ledger, plans)

        plans = np.hstack([grown(drawer, heads, tails, width, costs) for heads in _heads(drawer, tails[0])])
        plans = plans[:, np.argsort(costs(plans), kind="stable")]
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
