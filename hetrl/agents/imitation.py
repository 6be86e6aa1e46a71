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

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Episode:
    """One plan as it was decided: (T, F) observations, (T,) actions, (T, A) masks of legal ones if there are any.

    :param plan: the same for all ways to decide one plan.
    """

    plan: bytes
    cost_ms: float
    observations: Floats
    actions: Ints
    masks: Bools | None


@dataclass(frozen=True)
class Lesson:
    """The decisions of all elite plans, one after the other; `masks` where they are known."""

    observations: torch.Tensor
    actions: torch.Tensor
    masks: torch.Tensor | None


class Elite:
    """The `size` cheapest distinct plans that were offered."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.episodes: list[Episode] = []
        self._lesson: Lesson | None = None

    @property
    def limit_ms(self) -> float:
        """Plans must be cheaper than this to be kept."""
        return self.episodes[-1].cost_ms if len(self.episodes) == self.size else np.inf

    def offer(self, episode: Episode) -> None:
        """Keep the episode if it is among the best and not there yet."""
        if episode.cost_ms >= self.limit_ms or any(episode.plan == e.plan for e in self.episodes):
            return
        self.episodes = sorted([*self.episodes, episode], key=lambda e: e.cost_ms)[: self.size]
        self._lesson = None

    def lesson(self) -> Lesson:
        """What there is to imitate; at least one plan was offered."""
        if self._lesson is None:
            masks = [e.masks for e in self.episodes if e.masks is not None]
            self._lesson = Lesson(
                torch.as_tensor(np.concatenate([e.observations for e in self.episodes])),
                torch.as_tensor(np.concatenate([e.actions for e in self.episodes])),
                torch.as_tensor(np.concatenate(masks)) if masks else None,
            )
        return self._lesson
