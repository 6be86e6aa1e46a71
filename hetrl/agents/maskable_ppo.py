"""MaskablePPO (sb3-contrib): a policy that makes the decisions of a plan one after the other, never an illegal one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback

from hetrl.agents.base import AgentRun
from hetrl.envs.core import PartitionCore
from hetrl.envs.sb3 import PartitionVecEnv


@dataclass(frozen=True)
class PpoConfig:
    """Settings; a plan is one episode, `episodes_per_update` of each environment make one update."""

    environments: int = 16
    episodes_per_update: int = 1
    batch_size: int = 128
    epochs: int = 8
    learning_rate: float = 1e-3
    entropy: float = 0.01
    clip_range: float = 0.2
    gae_lambda: float = 0.95
    hidden: int = 64


class _UntilExhausted(BaseCallback):
    """Stops learning when the budget is spent, and counts decisions."""

    def __init__(self, run: AgentRun) -> None:
        super().__init__()
        self._run = run

    def _on_step(self) -> bool:
        self._run.env_steps = self.num_timesteps
        return not self._run.ledger.exhausted


def maskable_ppo(run: AgentRun, config: PpoConfig | None = None) -> None:
    """Learn until the run's budget is spent."""
    config = config or PpoConfig()
    ledger = run.ledger
    core = PartitionCore(
        ledger.space,
        ledger.objective,
        lambda taken: ledger.outcomes(taken, run.name),
        ledger.reference_ms,
        config.environments,
    )
    env = PartitionVecEnv(core)
    torch.set_num_threads(1)  # faster than more for networks this small
    torch.distributions.Distribution.set_default_validate_args(False)  # masks make every distribution valid
    model = MaskablePPO(
        "MlpPolicy",
        env,
        n_steps=ledger.space.length * config.episodes_per_update,
        batch_size=config.batch_size,
        n_epochs=config.epochs,
        gamma=1.0,
        gae_lambda=config.gae_lambda,
        learning_rate=config.learning_rate,
        ent_coef=config.entropy,
        clip_range=config.clip_range,
        policy_kwargs={"net_arch": [config.hidden, config.hidden]},
        seed=run.seed,
        device="cpu",
    )
    try:
        model.learn(total_timesteps=10**9, callback=_UntilExhausted(run))
    finally:
        run.save_weights = lambda folder: save(model, folder)


def save(model: MaskablePPO, folder: Path) -> None:
    """Write the policy's weights; they load with `torch.load(..., weights_only=True)`, which executes nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.policy.state_dict(), folder / "policy.pt")
