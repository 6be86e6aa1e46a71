"""DQN among legal actions only: observations end with the mask, and what it forbids is worth nothing.

So the greedy choice, the random one and the target's maximum over the next actions are all of legal actions, and
what is stored is what was done.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import DQN
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from hetrl.agents.credit import Floats
from hetrl.envs.core import Finished

FORBIDDEN = -1e9  # finite: the target multiplies it by 0 where a plan ends


class MaskedQNetwork(QNetwork):
    """Q-values (B, A) of observations (B, F + A) that end with the mask."""

    def forward(self, obs: Any) -> torch.Tensor:
        values: torch.Tensor = super().forward(obs)
        return values.masked_fill(obs[:, -values.shape[1] :] < 0.5, FORBIDDEN)


class MaskedDQNPolicy(DQNPolicy):
    """The policy of `MaskedQNetwork`."""

    def make_q_net(self) -> MaskedQNetwork:
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return MaskedQNetwork(**arguments).to(self.device)


class MaskedDQN(DQN):
    """DQN over masked observations, each environment exploring for itself.

    :ivar inertia: by how much (log-odds) a random decision is likelier the first choice than another.
    :ivar random_plans: over so many plans, the chance of a random decision falls from 1 to `exploration_final_eps`.
    """

    inertia: float = 0.0
    random_plans: int = 0

    def predict(
        self,
        observation: Any,
        state: tuple[Any, ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[Any, ...] | None]:
        """Actions (B,) for observations (B, F + A), epsilon-greedy unless `deterministic`."""
        greedy, state = self.policy.predict(observation, state, episode_start, deterministic=True)
        if deterministic:
            return greedy, state
        masks = observation[:, -self.policy.action_space.n :]  # type: ignore[attr-defined]
        # Drawn from numpy's global generator, which stable-baselines3 seeds. Gumbel's noise makes a softmax's choice.
        noise = np.random.gumbel(size=masks.shape)
        noise[:, 0] += self.inertia
        anything = np.where(masks > 0, noise, -np.inf).argmax(axis=1)
        explores = np.random.random_sample(len(masks)) < self.epsilon
        return np.where(explores, anything, greedy), state

    @property
    def epsilon(self) -> float:
        """Chance of a random decision."""
        over = self.random_plans * self._plan_length
        done = self.num_timesteps / over if over else 1.0
        return max(self.exploration_final_eps, 1.0 - done * (1.0 - self.exploration_final_eps))

    @property
    def _plan_length(self) -> int:
        return int(self.train_freq.frequency)  # type: ignore[union-attr]

    def take_in(self, finished: Finished, rewards: Floats) -> None:
        """See `Learner`: the plans that were just stored get their rewards by timeline."""
        buffer = self.replay_buffer
        assert buffer is not None
        last = (buffer.pos - np.arange(len(rewards), 0, -1)) % buffer.buffer_size
        buffer.rewards[last] = rewards
