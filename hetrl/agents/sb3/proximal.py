"""PPO with masks and without: the same settings, the same arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from hetrl.agents.base import AgentRun
from hetrl.agents.sb3.config import PpoConfig
from hetrl.agents.sb3.learning import layers
from hetrl.agents.sb3.on_policy import ImitatingMaskablePPO, ImitatingPPO
from hetrl.agents.sb3.vec_env import TrainingVecEnv

Model = TypeVar("Model", ImitatingMaskablePPO, ImitatingPPO)


def proximal(algorithm: type[Model], run: AgentRun, config: PpoConfig) -> Callable[[TrainingVecEnv], Model]:
    """What makes the run's model for its environments."""

    def make(env: TrainingVecEnv) -> Model:
        length = run.ledger.space.length
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You have specified a mini-batch size")  # the last may be smaller
            return algorithm(
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
