"""Many plans side by side as a Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from gymnasium.error import InvalidAction
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from hetrl.envs.core import Bools, Finished, Floats, Ints
from hetrl.envs.device_core import DeviceCore
from hetrl.envs.setting import Setting
from hetrl.envs.spaces import action_space, observation_space
from hetrl.objective import Objective
from hetrl.plan import Plan

Array = npt.NDArray[Any]


class PartitionVectorEnv(VectorEnv[Floats, Ints, Array]):
    """`PartitionEnv` for B plans at once; a surrogate evaluates all B in one batch.

    All plans take their decisions in lockstep and end in the same step, in which the next ones begin: `infos` then
    holds `final_obs` and `final_info`, as those of `gymnasium.vector.SyncVectorEnv` do, but for `plan`: for speed
    there are only the `decisions`, int64 (B, length), of which `plan` makes the plans that are wanted.
    `infos["action_mask"]` is int8 (B, width).

    The parameters are those of `PartitionEnv`, and `num_envs` is B.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(  # noqa: PLR0913 (names, as a user gives them)
        self,
        num_envs: int,
        device: str,
        model: str,
        *,
        engine: str | None = None,
        condition: str | None = None,
        max_accuracy_drop_pct: float = 0.0,
        max_frame_drop_rate: float | None = None,
        max_output_error: float | None = None,
        input_shapes: Mapping[str, Sequence[int]] | None = None,
        seeded_weights: int | None = None,
    ) -> None:
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
        self._begin(DeviceCore(setting, num_envs, owned=True))

    @classmethod
    def of(cls, setting: Setting, num_envs: int) -> Self:
        """The environments on an open device, which stays open."""
        env = cls.__new__(cls)
        env._begin(DeviceCore(setting, num_envs))
        return env

    def _begin(self, core: DeviceCore) -> None:
        self.core = core
        self.num_envs = core.size
        self.single_action_space = action_space(core.space)
        self.single_observation_space = observation_space(core.space)
        self.action_space = batch_space(self.single_action_space, core.size)
        self.observation_space = batch_space(self.single_observation_space, core.size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Begin B new plans."""
        super().reset(seed=seed)
        return self.core.reset(), self._mask_infos()

    def step(self, actions: Ints) -> tuple[Floats, Array, Array, Array, dict[str, Any]]:
        """Take the decisions at hand, int (B,).

        :raises InvalidAction: actions that are not in the action space.
        """
        actions = np.asarray(actions)
        fits = actions.shape == (self.num_envs,) and np.issubdtype(actions.dtype, np.integer)
        if not (fits and ((actions >= 0) & (actions < self.core.space.width)).all()):
            raise InvalidAction(f"{actions!r} is not in {self.action_space}")
        rewards, repaired, finished = self.core.step(actions.astype(np.int64))
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        if finished is None:
            over = ~everyone
            infos = {"repaired": repaired, "_repaired": everyone} | self._mask_infos()
            return self.core.observe(), rewards, over, over.copy(), infos
        infos = self._final_infos(finished, repaired, self.core.observe())
        observations = self.core.reset()
        lost = self.core.lost.copy()
        return observations, rewards, ~lost, lost, infos | self._mask_infos()

    def action_masks(self) -> Bools:
        """(B, width) legal actions."""
        return self.core.masks().copy()

    def plan(self, decisions: Ints) -> Plan:
        """The plan of (length,) decisions."""
        return self.core.space.plan(decisions)

    def close_extras(self) -> None:
        """Close the device, if this environment opened it."""
        self.core.close()

    def _mask_infos(self) -> dict[str, Any]:
        return {
            "action_mask": self.action_masks().astype(np.int8),
            "_action_mask": np.ones(self.num_envs, dtype=np.bool_),
        }

    def _final_infos(self, finished: Finished, repaired: Bools, observations: Floats) -> dict[str, Any]:
        """In Gymnasium's form: beside every array, `_name` says which environments have an entry."""
        final: dict[str, Array] = {"repaired": repaired} | self.core.final_infos(finished)
        present = {name: np.ones(self.num_envs, dtype=np.bool_) for name in final}
        present["error"] = final["error"] != np.array(None)
        if not present["error"].any():
            del final["error"], present["error"]
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        each = np.empty(self.num_envs, dtype=object)
        each[:] = list(observations)
        return {
            "final_obs": each,
            "_final_obs": everyone,
            "final_info": final | {f"_{name}": mask for name, mask in present.items()},
            "_final_info": everyone.copy(),
        }
