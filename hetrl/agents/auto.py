"""The default: a policy proposes, the surrogate ranks, the device measures the best, local search refines.

Every round lets a policy propose plans, anneals them and the best plans measured so far on the surrogate, and measures
the most promising ones. What the device answers corrects the surrogate. Rollouts on the surrogate are no evaluations.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.hybrid.search import GuidedSearch

Ints = npt.NDArray[np.int64]


class AutoConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings.

    :param environments: plans that the policy proposes per round, 0 for no policy; a batch of `batch_size` decisions
        per gradient step, `epochs` times.
    :param chains: plans that are annealed side by side.
    :param steps: annealing steps of a round.
    :param beam: width of a beam search in the first of every `beam_every` rounds, 0 for none.
    :param hot: temperature that every round begins at, as a fraction of a plan's cost; `cold` that it ends at.
    :param picks_share: a round measures so many plans for each that has been measured, `picks_at_least` and
        `picks_at_most`: at the beginning every few answers teach something.
    :param patience: rounds without any new plan after which the space counts as exhausted.
    """

    environments: int = 64
    batch_size: int = 512
    epochs: int = 4
    chains: int = 64
    steps: int = 300
    beam: int = 4
    beam_every: int = 4
    hot: float = 0.1
    cold: float = 0.002
    picks_share: float = 0.1
    picks_at_least: int = 2
    picks_at_most: int = 32
    patience: int = 5

    def __post_init__(self) -> None:
        if self.environments < 0 or self.batch_size < 2 or self.epochs < 1:
            raise ValueError("a policy needs environments >= 0 (0 for none), batch_size >= 2 and epochs >= 1")
        for name in ("chains", "steps", "beam_every", "picks_at_least", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.beam < 0:
            raise ValueError("beam must be at least 0")
        if not self.picks_at_least <= self.picks_at_most <= self.chains:
            raise ValueError("a chain proposes one plan: give chains >= picks_at_most >= picks_at_least")
        if not 0 < self.cold <= self.hot < 1:
            raise ValueError("temperatures must fall: 0 < cold <= hot < 1")
        if not 0 <= self.picks_share <= 1:
            raise ValueError("picks_share must be 0 to 1")


def for_budget(budget: int) -> AutoConfig:
    """The same for all: rounds grow with what has been measured."""
    return AutoConfig()


def _propose(run: AgentRun, config: AutoConfig) -> None:
    rounds = _Rounds(run, config)
    if config.environments == 0:
        nothing = np.zeros((run.ledger.space.length, 0), dtype=np.int64)
        while not run.ledger.exhausted and rounds.idle < config.patience:
            rounds.next(nothing)
        return
    from hetrl.agents.sb3.config import PpoConfig
    from hetrl.agents.sb3.learning import learn
    from hetrl.agents.sb3.on_policy import ImitatingMaskablePPO
    from hetrl.agents.sb3.proximal import proximal

    policy = PpoConfig(
        environments=config.environments, batch_size=config.batch_size, epochs=config.epochs, patience=config.patience
    )
    learn(
        run,
        policy,
        proximal(ImitatingMaskablePPO, run, policy),
        evaluator=rounds.search.ranking.outcomes,
        then=lambda finished: rounds.next(finished.taken),
    )


class _Rounds:
    """The rounds of one run, each with what suits what has been measured."""

    def __init__(self, run: AgentRun, config: AutoConfig) -> None:
        self._run, self._config = run, config
        self.search = GuidedSearch(run.ledger, run.name, config.chains, np.random.default_rng(run.seed))
        self.idle = 0  # rounds without a new plan
        self._count = 0

    def next(self, proposals: Ints) -> None:
        """One round, from (length, B) proposals."""
        config, ledger = self._config, self._run.ledger
        picks = min(max(round(config.picks_share * ledger.evaluations), config.picks_at_least), config.picks_at_most)
        width = config.beam if self._count % config.beam_every == 0 else 0
        new = self.search.round(proposals, width, picks, config.steps, config.hot, config.cold)
        self._count += 1
        self.idle = 0 if new else self.idle + 1
        if self.idle:
            self.search.widen()


auto = Method("a policy proposes, the surrogate ranks, local search refines", AutoConfig, for_budget, _propose)
