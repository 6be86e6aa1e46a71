"""stable-baselines3's on-policy algorithms, with rewards by timeline and imitation of the best plans."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from hetrl.agents.base import AgentRun
from hetrl.agents.credit import Floats
from hetrl.agents.exploration import BoundedLogits, lean
from hetrl.agents.imitation import Elite, Episode
from hetrl.agents.sb3.config import OnPolicyConfig
from hetrl.envs.core import Finished
from hetrl.envs.space import PlanSpace


class Imitating(OnPolicyAlgorithm):
    """Follows each update with some steps of imitation of an elite; beside one of stable-baselines3's algorithms."""

    space: PlanSpace
    elite: Elite
    imitation_steps: int

    def prepared(self, run: AgentRun, config: OnPolicyConfig) -> Self:
        """The model, with logits bounded and an elite to imitate."""
        space = run.ledger.space
        bounded = BoundedLogits.for_changes(config.changes, space.length, space.width)
        lean(self.policy.action_net, config.inertia)
        self.policy.action_net = nn.Sequential(self.policy.action_net, bounded)
        self.space = space
        self.elite = Elite(config.elite)
        self.imitation_steps = config.imitation_steps
        return self

    def take_in(self, finished: Finished, rewards: Floats) -> None:
        """See `Learner`. The elite gets the decisions as the environment understood them."""
        buffer = self.rollout_buffer
        buffer.rewards[:] = rewards
        over = np.ones(buffer.n_envs, dtype=np.bool_)
        buffer.compute_returns_and_advantage(torch.zeros(buffer.n_envs), over)
        masks = buffer.action_masks if isinstance(buffer, MaskableRolloutBuffer) else None
        best = np.argsort(finished.cost_ms, kind="stable")[: self.elite.size]
        best = best[~np.isnan(finished.outcomes.latency_ms[best]) & (finished.cost_ms[best] < self.elite.limit_ms)]
        plans = self.space.canonical(finished.taken[:, best])
        for column, b in enumerate(best):
            self.elite.offer(
                Episode(
                    plans[:, column].tobytes(),
                    float(finished.cost_ms[b]),
                    buffer.observations[:, b].copy(),
                    finished.taken[:, b].copy(),
                    None if masks is None else masks[:, b].astype(np.bool_),
                )
            )

    def train(self) -> None:
        super().train()
        if self.elite.episodes:
            for _ in range(self.imitation_steps):
                self._imitate()

    def _imitate(self) -> None:
        """One gradient step on the mean negative log-likelihood of the elite's decisions."""
        lesson = self.elite.lesson()
        known: dict[str, Any] = {} if lesson.masks is None else {"action_masks": lesson.masks}
        _, log_likelihood, _ = self.policy.evaluate_actions(lesson.observations, lesson.actions, **known)
        loss = -log_likelihood.mean()
        self.policy.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()


class ImitatingMaskablePPO(Imitating, MaskablePPO):
    """MaskablePPO that imitates."""


class ImitatingPPO(Imitating, PPO):
    """PPO that imitates."""


class ImitatingA2C(Imitating, A2C):
    """A2C that imitates."""
