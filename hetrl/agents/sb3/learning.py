"""The learning loop: environments on the run's ledger, a model that learns in them, and an end to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from hetrl.agents.base import AgentRun
from hetrl.agents.credit import Floats, step_rewards, work_weights
from hetrl.agents.sb3.config import AgentConfig
from hetrl.agents.sb3.vec_env import TrainingVecEnv
from hetrl.envs.core import Evaluator, Finished, PartitionCore
from hetrl.envs.space import Granularity, PlanSpace

FOR_EVER = 10**12  # decisions; the ledger ends the loop


class Learner(Protocol):
    """What a model must do beside being stable-baselines3's. A rollout is one whole plan per environment."""

    @property
    def policy(self) -> nn.Module:
        """What it has learnt."""

    def take_in(self, finished: Finished, rewards: Floats) -> None:
        """Learn from these (length, B) rewards of the rollout that has ended, in place of the environment's."""

    def learn(self, total_timesteps: int, callback: Any) -> Any:
        """stable-baselines3's."""


class Pacer(BaseCallback):
    """Hands out credit by timeline; stops learning when the budget is spent, or nothing new comes any more."""

    def __init__(self, run: AgentRun, env: TrainingVecEnv, patience: int, then: Callable[[Finished], None]) -> None:
        super().__init__()
        self._run = run
        self._env = env
        self._patience = patience
        self._then = then
        self._weights = work_weights(run.ledger.space)
        self._evaluations = run.ledger.evaluations
        self._idle = 0

    def _on_step(self) -> bool:
        self._run.env_steps = self.num_timesteps
        return not self._run.ledger.exhausted and self._idle < self._patience

    def _on_rollout_end(self) -> None:
        ledger, finished = self._run.ledger, self._env.finished
        if finished is None:  # the budget was spent before the first plan was complete
            return
        learner: Any = self.model
        learner.take_in(finished, step_rewards(ledger.space, self._weights, finished, ledger.reference_ms))
        self._then(finished)
        self._idle = self._idle + 1 if ledger.evaluations == self._evaluations else 0
        self._evaluations = ledger.evaluations


def learn(
    run: AgentRun,
    config: AgentConfig,
    make: Callable[[TrainingVecEnv], Learner],
    *,
    shows_masks: bool = False,
    evaluator: Evaluator | None = None,
    then: Callable[[Finished], None] = lambda finished: None,
) -> None:
    """Learn until the run's budget is spent, with the model that `make` makes for the environments.

    :param evaluator: what the environments ask for outcomes, by default the ledger.
    :param then: called with the plans of each rollout, before the update that learns from them.
    """
    ledger = run.ledger
    core = PartitionCore(
        ledger.space,
        ledger.objective,
        evaluator or (lambda taken: ledger.outcomes(taken, run.name)),
        ledger.reference_ms,
        config.environments,
        pinned=pinned(ledger.space, round(config.environments * (1 - config.free))),
    )
    env = TrainingVecEnv(core, shows_masks=shows_masks)
    torch.set_num_threads(1)  # faster than more for networks this small, and the same bytes on every machine
    torch.distributions.Distribution.set_default_validate_args(False)  # logits are finite, masks leave a choice
    model = make(env)
    try:
        model.learn(FOR_EVER, callback=Pacer(run, env, config.patience, then))
    finally:
        run.save_weights = lambda folder: save(model.policy, folder)


def pinned(space: PlanSpace, plans: int) -> list[Granularity]:
    """Granularities of which all others are special cases, in turns."""
    general = (Granularity.INTRA_OP, Granularity.INTER_OP) if space.branches else (Granularity.INTRA_OP,)
    return [general[plan % len(general)] for plan in range(plans)]


def save(policy: nn.Module, folder: Path) -> None:
    """Write the policy's weights; they load with `torch.load(..., weights_only=True)`, which executes nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(policy.state_dict(), folder / "policy.pt")


def layers(config: AgentConfig) -> dict[str, Any]:
    """stable-baselines3's `policy_kwargs`."""
    return {"net_arch": [config.hidden, config.hidden]}
