"""MaskablePPO (sb3-contrib): a policy that makes the decisions of a plan one after the other, never an illegal one."""

from __future__ import annotations

from collections.abc import Callable

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.sb3.config import PpoConfig, ppo_config
from hetrl.agents.sb3.learning import layers, learn
from hetrl.agents.sb3.on_policy import ImitatingMaskablePPO
from hetrl.agents.sb3.vec_env import TrainingVecEnv


def model_for(run: AgentRun, config: PpoConfig) -> Callable[[TrainingVecEnv], ImitatingMaskablePPO]:
    """What makes the model for the run's environments."""

    def make(env: TrainingVecEnv) -> ImitatingMaskablePPO:
        length = run.ledger.space.length
        return ImitatingMaskablePPO(
            "MlpPolicy",
            env,
            n_steps=length,
            batch_size=config.batch(length),
            n_epochs=config.epochs,
            gamma=1.0,
            gae_lambda=config.gae_lambda,
            learning_rate=config.learning_rate,
            ent_coef=config.entropy,
            clip_range=config.clip_range,
            policy_kwargs=layers(config),
            seed=run.seed,
            device="cpu",
        ).prepared(run, config)

    return make


def _propose(run: AgentRun, config: PpoConfig) -> None:
    learn(run, config, model_for(run, config))


maskable_ppo = Method(
    "proximal policy optimisation that only chooses among legal decisions", PpoConfig, ppo_config, _propose
)
