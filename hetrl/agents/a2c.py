"""A2C (stable-baselines3) without masks: an illegal decision becomes the lowest legal one."""

from __future__ import annotations

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.sb3.config import MANY, OnPolicyConfig
from hetrl.agents.sb3.learning import layers, learn
from hetrl.agents.sb3.on_policy import ImitatingA2C
from hetrl.agents.sb3.vec_env import TrainingVecEnv


class A2cConfig(OnPolicyConfig, frozen=True, kw_only=True):
    """Settings of advantage actor-critic: one gradient step per update, over all that the environments bring."""


def _for_budget(budget: int) -> A2cConfig:
    return A2cConfig(environments=16 if budget < MANY else 64)


def _propose(run: AgentRun, config: A2cConfig) -> None:
    def make(env: TrainingVecEnv) -> ImitatingA2C:
        return ImitatingA2C(
            "MlpPolicy",
            env,
            n_steps=run.ledger.space.length,
            gamma=1.0,
            gae_lambda=config.gae_lambda,
            learning_rate=config.learning_rate,
            ent_coef=config.entropy,
            use_rms_prop=False,  # Adam: imitation goes through the same optimiser
            policy_kwargs=layers(config),
            seed=run.seed,
            device="cpu",
        ).prepared(run, config)

    learn(run, config, make)


a2c = Method("advantage actor-critic; illegal decisions are repaired", A2cConfig, _for_budget, _propose)
