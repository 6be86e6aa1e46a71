"""PPO (stable-baselines3) without masks: an illegal decision becomes the lowest legal one."""

from __future__ import annotations

import warnings

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.sb3.config import PpoConfig, ppo_config
from hetrl.agents.sb3.learning import layers, learn
from hetrl.agents.sb3.on_policy import ImitatingPPO
from hetrl.agents.sb3.vec_env import TrainingVecEnv


def _propose(run: AgentRun, config: PpoConfig) -> None:
    def make(env: TrainingVecEnv) -> ImitatingPPO:
        length = run.ledger.space.length
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You have specified a mini-batch size")  # the last may be smaller
            return ImitatingPPO(
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

    learn(run, config, make)


ppo = Method("proximal policy optimisation; illegal decisions are repaired", PpoConfig, ppo_config, _propose)
