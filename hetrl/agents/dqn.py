"""DQN (stable-baselines3): learns what each legal decision is worth, from all plans that it remembers."""

from __future__ import annotations

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.sb3.config import MANY, AgentConfig
from hetrl.agents.sb3.learning import layers, learn
from hetrl.agents.sb3.masked_q import MaskedDQN, MaskedDQNPolicy
from hetrl.agents.sb3.vec_env import TrainingVecEnv


class DqnConfig(AgentConfig, frozen=True, kw_only=True):
    """Settings of deep Q-learning.

    :param batch_size: decisions per gradient step, of which there are `gradient_steps` after each plan of all
        environments.
    :param buffer_plans: plans that are remembered.
    :param target_updates: rounds of plans after which the target network is renewed.
    :param random_plans: over so many plans, decisions turn from random ones into greedy ones with `changes` random
        ones per plan, which lean by `inertia` as the first ones do, and may be what was greedy anyway.
    """

    batch_size: int = 256
    gradient_steps: int = 32
    buffer_plans: int = 5000
    target_updates: int = 4
    random_plans: int = 200


def _for_budget(budget: int) -> DqnConfig:
    random_plans = max(16, min(200, budget // 5))
    if budget < MANY:
        return DqnConfig(random_plans=random_plans)
    return DqnConfig(environments=64, batch_size=512, buffer_plans=10_000, random_plans=random_plans)


def _propose(run: AgentRun, config: DqnConfig) -> None:
    length = run.ledger.space.length

    def make(env: TrainingVecEnv) -> MaskedDQN:
        model = MaskedDQN(
            MaskedDQNPolicy,
            env,
            buffer_size=max(config.buffer_plans, config.environments) * length,
            learning_starts=0,
            train_freq=length,
            gradient_steps=config.gradient_steps,
            batch_size=config.batch_size,
            gamma=1.0,
            learning_rate=config.learning_rate,
            target_update_interval=config.target_updates * length * config.environments,
            exploration_final_eps=min(1.0, config.changes / length),
            policy_kwargs=layers(config),
            seed=run.seed,
            device="cpu",
        )
        model.inertia = config.inertia
        model.random_plans = config.random_plans
        return model

    learn(run, config, make, shows_masks=True)


dqn = Method("deep Q-learning among legal decisions", DqnConfig, _for_budget, _propose)
