"""MaskablePPO (sb3-contrib): a policy that makes the decisions of a plan one after the other, never an illegal one."""

from __future__ import annotations

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.sb3.config import PpoConfig, ppo_config
from hetrl.agents.sb3.learning import learn
from hetrl.agents.sb3.on_policy import ImitatingMaskablePPO
from hetrl.agents.sb3.proximal import proximal


def _propose(run: AgentRun, config: PpoConfig) -> None:
    learn(run, config, proximal(ImitatingMaskablePPO, run, config))


maskable_ppo = Method(
    "proximal policy optimisation that only chooses among legal decisions", PpoConfig, ppo_config, _propose
)
