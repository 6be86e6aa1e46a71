"""PPO (stable-baselines3) without masks: an illegal decision becomes the lowest legal one."""

from __future__ import annotations

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.sb3.config import PpoConfig, ppo_config
from hetrl.agents.sb3.learning import learn
from hetrl.agents.sb3.on_policy import ImitatingPPO
from hetrl.agents.sb3.proximal import proximal


def _propose(run: AgentRun, config: PpoConfig) -> None:
    learn(run, config, proximal(ImitatingPPO, run, config))


ppo = Method("proximal policy optimisation; illegal decisions are repaired", PpoConfig, ppo_config, _propose)
