"""The batched environment as a stable-baselines3 `VecEnv`, with the masks that sb3-contrib's MaskablePPO asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from hetrl.envs.core import Finished, PartitionCore
from hetrl.envs.device_core import DeviceCore
from hetrl.envs.setting import Setting
from hetrl.envs.spaces import action_space, observation_space
from hetrl.objective import Objective

Bools = npt.NDArray[np.bool_]


class PartitionVecEnv(VecEnv):
    """All of a core's plans as environments of one vector; finished plans start anew in the same step.

    The last `info` of a plan holds what `PartitionEnv` says, but for `plan`.

    :param finished: told about every batch of complete plans.
    """

    def __init__(self, core: PartitionCore, finished: Callable[[Finished], None] | None = None) -> None:
        self.core = core
        self._finished = finished
        self._actions = np.zeros(core.size, dtype=np.int64)
        self.render_mode = None
        super().__init__(core.size, observation_space(core.space), action_space(core.space))

    def reset(self) -> VecEnvObs:
        self._reset_seeds()
        self._reset_options()
        return self.core.reset()

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        self._actions = np.asarray(actions, dtype=np.int64)

    def step_wait(self) -> VecEnvStepReturn:
        rewards, repaired, finished = self.core.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for wrong in np.flatnonzero(repaired):
            infos[wrong]["repaired"] = True
        done = np.full(self.num_envs, finished is not None)
        observation = self.core.observe()
        if finished is not None:
            known = self.core.final_infos(finished)
            for index in range(self.num_envs):
                infos[index] |= {name: values[index] for name, values in known.items()}
                infos[index]["terminal_observation"] = observation[index]
                infos[index]["TimeLimit.truncated"] = bool(self.core.lost[index])
                infos[index]["episode"] = {"r": float(rewards[index]), "l": self.core.space.length, "t": 0.0}
            if self._finished is not None:
                self._finished(finished)
            observation = self.core.reset()
        return observation, rewards.astype(np.float32), done, infos

    def close(self) -> None:
        """Close the device, if it was opened for this environment."""
        self.core.close()

    def action_masks(self) -> Bools:
        """(B, width) legal actions."""
        return self.core.masks()

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        if method_name != "action_masks":
            raise AttributeError(f"PartitionVecEnv has no method {method_name!r}")
        masks = self.core.masks()
        return [masks[i] for i in self._get_indices(indices)]

    def has_attr(self, attr_name: str) -> bool:
        return attr_name == "action_masks" or super().has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        value = self.action_masks if attr_name == "action_masks" else getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise AttributeError(f"{attr_name!r} of a PartitionVecEnv cannot be set")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


def make_sb3_vec_env(  # noqa: PLR0913 (names, as a user gives them)
    model: str,
    device: str,
    num_envs: int,
    *,
    engine: str | None = None,
    condition: str | None = None,
    max_accuracy_drop_pct: float = 0.0,
    max_frame_drop_rate: float | None = None,
    max_output_error: float | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seeded_weights: int | None = None,
) -> PartitionVecEnv:
    """What stable-baselines3 trains in, from names; see `PartitionEnv` for what they mean.

    :raises HetrlError: a mistake in one of them, or a device that cannot run the model.
    """
    objective = Objective(
        max_accuracy_drop_pct=max_accuracy_drop_pct,
        max_frame_drop_rate=max_frame_drop_rate,
        max_output_error=max_output_error,
    )
    setting = Setting.of(
        model,
        device,
        engine=engine,
        condition=condition,
        objective=objective,
        input_shapes=input_shapes,
        seeded_weights=seeded_weights,
    )
    return PartitionVecEnv(DeviceCore(setting, num_envs, owned=True))
