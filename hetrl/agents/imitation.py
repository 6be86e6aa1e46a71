"""Learning from the best plans so far, beside learning from rewards.

A rollout teaches once; the best plans of a search stay worth learning from. After each policy update the agent also
raises the likelihood of the decisions of its elite (self-imitation: Oh et al., ICML'18; the elite set is the
cross-entropy method's). With logits bounded, what it proposes next are variations of the elite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib import MaskablePPO

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Episode:
    """One plan as it was decided: (T, F) observations, (T,) actions, (T, A) masks."""

    cost_ms: float
    observations: Floats
    actions: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_]


class Elite:
    """The `size` cheapest distinct plans that were offered."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.episodes: list[Episode] = []
        self._known: set[bytes] = set()

    def offer(self, episode: Episode) -> None:
        """Keep the episode if it is among the best and not there yet."""
        name = episode.actions.tobytes()
        full = len(self.episodes) == self.size
        if name in self._known or (full and episode.cost_ms >= self.episodes[-1].cost_ms):
            return
        self._known.add(name)
        self.episodes = sorted([*self.episodes, episode], key=lambda e: e.cost_ms)[: self.size]


class ImitatingPPO(MaskablePPO):
    """MaskablePPO that follows each update with some steps of imitation of its elite."""

    elite: Elite | None = None
    imitation_steps: int = 0

    def train(self) -> None:
        super().train()
        if self.elite is not None and self.elite.episodes:
            for _ in range(self.imitation_steps):
                self._imitate(self.elite.episodes)

    def _imitate(self, episodes: list[Episode]) -> None:
        """One gradient step on the mean negative log-likelihood of the elite's decisions."""
        observations = torch.as_tensor(np.concatenate([e.observations for e in episodes]))
        actions = torch.as_tensor(np.concatenate([e.actions for e in episodes]))
        masks = torch.as_tensor(np.concatenate([e.masks for e in episodes]))
        _, log_likelihood, _ = self.policy.evaluate_actions(observations, actions, action_masks=masks)
        loss = -log_likelihood.mean()
        self.policy.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
