"""Settings that agents share, and which values of them make sense."""

from __future__ import annotations

import math

import msgspec

# Smallest and largest value of each setting, whichever agent has it. The largest ones only keep out what would fill
# the memory or never end.
RANGES: dict[str, tuple[float, float]] = {
    "environments": (1, 4096),
    "batch_size": (2, 1_000_000),
    "epochs": (1, 100),
    "learning_rate": (1e-7, 1.0),
    "entropy": (0.0, 10.0),
    "clip_range": (0.001, 10.0),
    "gae_lambda": (0.0, 1.0),
    "hidden": (1, 4096),
    "free": (0.0, 1.0),
    "changes": (0.01, 1000.0),
    "inertia": (0.0, 5.0),
    "elite": (1, 10_000),
    "imitation_steps": (0, 10_000),
    "patience": (1, 1_000_000),
    "buffer_plans": (1, 1_000_000),
    "gradient_steps": (1, 100_000),
    "target_updates": (1, 1_000_000),
    "random_plans": (0, 1_000_000),
}


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of any agent. A plan is one episode, and every environment plays one episode between updates.

    :param hidden: width of both hidden layers.
    :param free: share of the environments that choose the granularity; the others make `intra_op` plans, or where
        branches may run side by side `inter_op` ones in turns with them, of which all other granularities are special
        cases, so that an early favourite cannot end the search.
    :param inertia: what the logit of the first choice is ahead of the others before anything is learnt, and before
        logits are bounded (see `changes`). It is the one that does nothing: the segment goes on, the cap stays away.
        Of the granularities it is the whole model on one processor.
    :param changes: decisions per plan that even a policy which is sure of itself keeps changing, by bounded logits.
    :param patience: updates without any new plan after which the space counts as exhausted.
    """

    environments: int = 16
    learning_rate: float = 1e-3
    hidden: int = 64
    free: float = 0.25
    inertia: float = 3.0
    changes: float = 1.5
    patience: int = 30

    def __post_init__(self) -> None:
        """
        :raises ValueError: a setting is out of its range.
        """
        for name, value in msgspec.structs.asdict(self).items():
            low, high = RANGES[name]
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} {value:g} is out of range, give {low:g} to {high:g}")


class OnPolicyConfig(AgentConfig, frozen=True, kw_only=True):
    """Settings of agents that learn from the plans which they have just made.

    :param entropy: weight of the policy's entropy in its loss.
    :param gae_lambda: of generalised advantage estimation.
    :param elite: best plans that are imitated, with `imitation_steps` gradient steps after each update.
    """

    entropy: float = 0.01
    gae_lambda: float = 0.95
    elite: int = 16
    imitation_steps: int = 8


class PpoConfig(OnPolicyConfig, frozen=True, kw_only=True):
    """Settings of proximal policy optimisation, with masks and without.

    :param batch_size: decisions per gradient step, at most all that the environments bring.
    """

    batch_size: int = 256
    epochs: int = 8
    clip_range: float = 0.2

    def batch(self, length: int) -> int:
        """`batch_size` for plans of so many decisions, such that no last batch is of one: it has no deviation."""
        decisions = length * self.environments
        size = min(self.batch_size, decisions)
        while decisions % size == 1:
            size += 1
        return size


MANY = 20_000  # evaluations from which many plans per update pay


def ppo_config(budget: int) -> PpoConfig:
    """What suits a budget: of a small one, every update counts; of a large one, every second."""
    if budget < MANY:
        return PpoConfig()
    return PpoConfig(environments=256, batch_size=2048, epochs=4, elite=32, imitation_steps=4)
