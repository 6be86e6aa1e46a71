"""The vector environment as training sees it: what only a reader of single plans needs is left away, for speed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from hetrl.envs.core import Finished, PartitionCore
from hetrl.envs.sb3 import PartitionVecEnv

Floats = npt.NDArray[np.float32]


class TrainingVecEnv(PartitionVecEnv):
    """`PartitionVecEnv` without infos.

    :param shows_masks: whether observations end with the mask of legal actions, (B, F + width).
    :ivar finished: the plans that were completed last.
    """

    def __init__(self, core: PartitionCore, *, shows_masks: bool = False) -> None:
        super().__init__(core)
        self.shows_masks = shows_masks
        self.finished: Finished | None = None
        self._infos: list[dict[str, Any]] = [{} for _ in range(core.size)]  # nobody writes into them
        if shows_masks:
            plain = self.observation_space
            assert isinstance(plain, spaces.Box)
            ones = np.ones(core.space.width, dtype=np.float32)
            low, high = np.append(plain.low, 0 * ones), np.append(plain.high, ones)
            self.observation_space = spaces.Box(low, high, dtype=np.float32)

    def reset(self) -> VecEnvObs:
        self._reset_seeds()
        self._reset_options()
        return self._seen(self.core.reset())

    def step_wait(self) -> VecEnvStepReturn:
        rewards, _, finished = self.core.step(self._actions)
        done = np.full(self.num_envs, finished is not None)
        if finished is not None:
            self.finished = finished
        observation = self.core.observe() if finished is None else self.core.reset()
        return self._seen(observation), rewards.astype(np.float32), done, self._infos

    def _seen(self, observation: Floats) -> Floats:
        return np.hstack([observation, self.core.masks().astype(np.float32)]) if self.shows_masks else observation
