"""MaskablePPO (sb3-contrib): a policy that makes the decisions of a plan one after the other, never an illegal one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from hetrl.agents.base import AgentRun
from hetrl.agents.credit import step_rewards, work_weights
from hetrl.agents.exploration import BoundedLogits
from hetrl.agents.imitation import Elite, Episode, ImitatingPPO
from hetrl.envs.core import Finished, PartitionCore
from hetrl.envs.sb3 import PartitionVecEnv


@dataclass(frozen=True)
class PpoConfig:
    """Settings. A plan is one episode, and every environment plays one episode between updates.

    :param free: share of the environments that choose the granularity; the others make `intra_op` plans, of which
        all other granularities are special cases, so that an early favourite cannot end the search.
    :param changes: decisions per plan that even a policy which is sure of itself keeps changing.
    :param elite: best plans that are imitated, with `imitation_steps` gradient steps after each update.
    :param patience: updates without any new plan after which the space counts as exhausted.
    """

    environments: int = 16
    batch_size: int = 256
    epochs: int = 8
    learning_rate: float = 1e-3
    entropy: float = 0.01
    clip_range: float = 0.2
    gae_lambda: float = 0.95
    hidden: int = 64
    free: float = 0.25
    changes: float = 3.0
    elite: int = 16
    imitation_steps: int = 8
    patience: int = 100


class _Pacer(BaseCallback):
    """Stops learning when the budget is spent, or when nothing new comes any more; hands out credit by timeline."""

    model: ImitatingPPO

    def __init__(self, run: AgentRun, patience: int) -> None:
        super().__init__()
        self.finished: Finished | None = None
        self._run = run
        self._patience = patience
        self._weights = work_weights(run.ledger.space)
        self._evaluations = run.ledger.evaluations
        self._idle = 0

    def tell(self, finished: Finished) -> None:
        """What the environments' plans gave."""
        self.finished = finished

    def _on_step(self) -> bool:
        self._run.env_steps = self.num_timesteps
        return not self._run.ledger.exhausted and self._idle < self._patience

    def _on_rollout_end(self) -> None:
        """A rollout is one whole plan per environment, so its rewards can be rewritten before they are learnt from."""
        ledger, buffer = self._run.ledger, self.model.rollout_buffer
        assert self.finished is not None  # a rollout ends with finished plans
        buffer.rewards[:] = step_rewards(ledger.space, self._weights, self.finished, ledger.reference_ms)
        over = np.ones(buffer.n_envs, dtype=np.bool_)
        buffer.compute_returns_and_advantage(torch.zeros(buffer.n_envs), over)
        if self.model.elite is not None:
            for b in np.flatnonzero(~np.isnan(self.finished.outcomes.latency_ms)):
                self.model.elite.offer(
                    Episode(
                        float(self.finished.cost_ms[b]),
                        buffer.observations[:, b].copy(),
                        buffer.actions[:, b].ravel().astype(np.int64),
                        buffer.action_masks[:, b].astype(np.bool_),
                    )
                )
        self._idle = self._idle + 1 if self._run.ledger.evaluations == self._evaluations else 0
        self._evaluations = self._run.ledger.evaluations


def maskable_ppo(run: AgentRun, config: PpoConfig | None = None) -> None:
    """Learn until the run's budget is spent."""
    config = config or PpoConfig()
    ledger = run.ledger
    core = PartitionCore(
        ledger.space,
        ledger.objective,
        lambda taken: ledger.outcomes(taken, run.name),
        ledger.reference_ms,
        config.environments,
        pinned=round(config.environments * (1 - config.free)),
    )
    pacer = _Pacer(run, config.patience)
    env = PartitionVecEnv(core, pacer.tell)
    torch.set_num_threads(1)  # faster than more for networks this small
    torch.distributions.Distribution.set_default_validate_args(False)  # masks make every distribution valid
    model = ImitatingPPO(
        "MlpPolicy",
        env,
        n_steps=ledger.space.length,
        batch_size=config.batch_size,
        n_epochs=config.epochs,
        gamma=1.0,
        gae_lambda=config.gae_lambda,
        learning_rate=config.learning_rate,
        ent_coef=config.entropy,
        clip_range=config.clip_range,
        policy_kwargs={"net_arch": [config.hidden, config.hidden]},
        seed=run.seed,
        device="cpu",
    )
    bounded = BoundedLogits.for_changes(config.changes, ledger.space.length, ledger.space.width)
    model.policy.action_net = nn.Sequential(model.policy.action_net, bounded)
    model.elite = Elite(config.elite)
    model.imitation_steps = config.imitation_steps
    try:
        model.learn(total_timesteps=10**9, callback=pacer)
    finally:
        run.save_weights = lambda folder: save(model, folder)


def save(model: MaskablePPO, folder: Path) -> None:
    """Write the policy's weights; they load with `torch.load(..., weights_only=True)`, which executes nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.policy.state_dict(), folder / "policy.pt")
