"""The default: a policy proposes, the surrogate ranks, the device measures the best, local search refines.

Every round lets a policy propose plans, anneals them and the best plans measured so far on the surrogate, and measures
the most promising ones. What the device answers corrects the surrogate. Rollouts on the surrogate are no evaluations.
"""

from __future__ import annotations

import msgspec
import numpy as np

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.hybrid.search import GuidedSearch


class AutoConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings.

    :param chains: plans that are annealed side by side.
    :param first_steps: annealing steps of the first round, `steps` those of every later one.
    :param hot: temperature that the first round begins at, as a fraction of a plan's cost; `warm` the later ones'.
    :param cold: temperature that every round ends at.
    :param picks_share: a round measures so many plans for each that has been measured, `picks_at_least` and
        `picks_at_most`: at the beginning every few answers teach something.
    :param patience: rounds without any new plan after which the space counts as exhausted.
    """

    chains: int = 64
    first_steps: int = 200
    steps: int = 40
    hot: float = 0.05
    warm: float = 0.02
    cold: float = 0.002
    picks_share: float = 0.1
    picks_at_least: int = 4
    picks_at_most: int = 32
    patience: int = 5

    def __post_init__(self) -> None:
        for name in ("chains", "first_steps", "steps", "picks_at_least", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not self.picks_at_least <= self.picks_at_most <= self.chains:
            raise ValueError("a chain proposes one plan: give chains >= picks_at_most >= picks_at_least")
        if not 0 < self.cold <= min(self.hot, self.warm) < 1:
            raise ValueError("temperatures must fall: 0 < cold <= hot and warm < 1")
        if not 0 <= self.picks_share <= 1:
            raise ValueError("picks_share must be 0 to 1")


def for_budget(budget: int) -> AutoConfig:
    """The same for all: rounds grow with what has been measured."""
    return AutoConfig()


def _propose(run: AgentRun, config: AutoConfig) -> None:
    rng = np.random.default_rng(run.seed)
    search = GuidedSearch(run.ledger, run.name, config.chains, rng)
    none = np.zeros((run.ledger.space.length, 0), dtype=np.int64)
    idle, first = 0, True
    while not run.ledger.exhausted and idle < config.patience:
        steps, hot = (config.first_steps, config.hot) if first else (config.steps, config.warm)
        picks = round(config.picks_share * run.ledger.evaluations)
        picks = min(max(picks, config.picks_at_least), config.picks_at_most)
        new = search.round(none, picks, steps, hot, config.cold)
        run.env_steps += search.asked * run.ledger.space.length
        idle, first = 0 if new else idle + 1, False
        if idle:
            search.widen()


auto = Method("a policy proposes, the surrogate ranks, local search refines", AutoConfig, for_budget, _propose)
