"""One plan at a time as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import InvalidAction, ResetNeeded

from hetrl.envs.core import Bools, Finished, Floats
from hetrl.envs.device_core import DeviceCore
from hetrl.envs.render import decision_names, describe_choice, render_rgb, render_text
from hetrl.envs.setting import Setting
from hetrl.envs.spaces import action_space, observation_space
from hetrl.objective import Objective
from hetrl.plan import encode_plan


class PartitionEnv(gym.Env[Floats, np.int64]):
    """An episode is one plan: a sequence of decisions, the last of which has it measured.

    First what holds for the whole plan: granularity, memory type, pruning ratio, queue window, kernel slicing and a
    utilization cap per processor. Then one decision per fusion group in execution order: 0 goes on with the segment
    before it, anything else begins a segment on a processor, or split over several along an axis by given shares.
    `decision_names` and `describe_action` put this into words.

    **Actions** `Discrete(width)`. Which are legal depends on the decisions before: `action_masks()`, bool (width,), and
    `info["action_mask"]`, the same as int8 for `action_space.sample(mask)`. An illegal action becomes the lowest
    legal one, and `info["repaired"]` says so.

    **Observations** `Box`, float32 (F,): the decision at hand, its fusion group and the next, what was decided so far.

    **Reward** 0, and in the end `log(reference_ms / cost_ms)`: the cost is the objective's (the latency inside the
    budgets), the reference the latency of the whole model on the CPU. A failed measurement costs four references.

    **Episode end** `terminated` once the plan is complete, and `truncated` instead where the device went away while it
    ran (the reward is 0 then). `info` holds `latency_ms`, `accuracy_drop_pct` (points), `frame_drop_rate` (0 to 1),
    `peak_memory_mb`, `energy_mj` and `cost_ms`, NaN where there is no number; `keeps_budgets`; `decisions`, int64
    (length,); `segment_ms`, float (fusion groups,), how long each segment took, at its last group; `plan`, the plan's
    canonical JSON; and `error` where the measurement failed.

    Nothing here is random: a seed changes the action space's samples alone. A real device never says quite the same
    twice, though, and `spec.nondeterministic` says so, whatever the id.

    :param device: name, device file or address.
    :param model: zoo name, or path of an ONNX file.
    :param engine: one of the device's engine sets; None for its default.
    :param condition: state of the device, `cold,ui=60hz:4ms`; None for cold, without a UI on a real device.
    :param max_accuracy_drop_pct: budget in percentage points; it also bounds the pruning ratios on offer.
    :param max_frame_drop_rate: budget, 0 to 1; None for no limit.
    :param max_output_error: of plans on a real device (largest difference over largest value); None for its own limit.
    :param input_shapes: of inputs whose dimensions the model leaves open.
    :param seeded_weights: seed of weights that the model lacks, on a device that really runs it.
    :param render_mode: `ansi` (str) or `rgb_array` (uint8, H x W x 3; needs the extra `plots`).
    :raises HetrlError: a mistake in one of these, or a device that cannot run the model.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 1}

    def __init__(  # noqa: PLR0913 (names, as a user gives them)
        self,
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
        render_mode: str | None = None,
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
        self._begin(DeviceCore(setting, 1, owned=True), render_mode)

    @classmethod
    def of(cls, setting: Setting, render_mode: str | None = None) -> Self:
        """The environment on an open device, which stays open; without a `spec`, since nothing names it."""
        env = cls.__new__(cls)
        env._begin(DeviceCore(setting, 1), render_mode)
        return env

    @property
    def spec(self) -> EnvSpec | None:
        """How `gym.make` made it, None where nobody did."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        if spec is not None and not self.core.setting.device.describe().deterministic:
            spec = replace(spec, nondeterministic=True)
        self._spec = spec

    def _begin(self, core: DeviceCore, render_mode: str | None) -> None:
        self.core = core
        self.spec = None
        self.render_mode = render_mode
        self.action_space = action_space(core.space)
        self.observation_space = observation_space(core.space)
        self._finished: Finished | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Begin a new plan."""
        super().reset(seed=seed)
        self._finished = None
        return self.core.reset()[0], self._mask_info()

    def step(self, action: np.int64 | int) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Take the decision at hand.

        :raises InvalidAction: the action is not in the action space.
        :raises ResetNeeded: the plan is complete.
        """
        if self._finished is not None:
            raise ResetNeeded("the plan is complete: call reset()")
        if not self.action_space.contains(action):
            raise InvalidAction(f"{action!r} is not in {self.action_space}")
        rewards, repaired, finished = self.core.step(np.array([action], dtype=np.int64))
        self._finished = finished
        info: dict[str, Any] = {"repaired": bool(repaired[0])}
        info |= self._mask_info() if finished is None else self._final_info(finished)
        lost = bool(self.core.lost[0])
        over = finished is not None
        return self.core.observe()[0], float(rewards[0]), over and not lost, over and lost, info

    def action_masks(self) -> Bools:
        """(width,) legal actions."""
        masks: Bools = self.core.masks()[0].copy()
        return masks

    def decision_names(self) -> tuple[str, ...]:
        """What each step of an episode decides: `granularity`, ..., `cap gpu/mace/fp32`, ..., `place conv1`, ..."""
        return decision_names(self.core.space)

    def describe_action(self, action: int) -> str:
        """What an action means for the decision at hand: `gpu/mace/fp32 70 % + cpu/mace/fp32 30 % by height`."""
        return describe_choice(self.core.space, self.core.step_number, int(action))

    def render(self) -> str | npt.NDArray[np.uint8] | None:
        """The decisions so far, and the timeline of a complete plan.

        :raises MissingExtra: `rgb_array` without matplotlib.
        """
        if self.render_mode is None:
            gym.logger.warn("render() without a render mode: make the environment with render_mode='ansi'")
            return None
        return (render_text if self.render_mode == "ansi" else render_rgb)(self.core, self._finished)

    def close(self) -> None:
        """Close the device, if this environment opened it."""
        self.core.close()

    def _mask_info(self) -> dict[str, Any]:
        return {"action_mask": self.action_masks().astype(np.int8)}

    def _final_info(self, finished: Finished) -> dict[str, Any]:
        infos = {name: values[0] for name, values in self.core.final_infos(finished).items()}
        info = {name: value.item() if isinstance(value, np.generic) else value for name, value in infos.items()}
        if info["error"] is None:
            del info["error"]
        return info | {"plan": encode_plan(self.core.plan(0)).decode()}
