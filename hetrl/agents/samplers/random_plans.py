"""Random plans: each decision uniform over what is legal, in order; what any search has to beat."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.samplers.settings import at_least
from hetrl.envs.space import PlanSpace


class RandomConfig(msgspec.Struct, frozen=True, kw_only=True):
    """
    :param batch: plans that are measured together.
    :param patience: batches without a new plan after which the space counts as exhausted.
    """

    batch: int = 64
    patience: int = 20

    def __post_init__(self) -> None:
        at_least(self, "batch", 1)
        at_least(self, "patience", 1)


def uniform_plans(space: PlanSpace, size: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """(length, size) legal decisions, each uniform over what the masks allow after those before it."""
    taken = np.zeros((space.length, size), dtype=np.int64)
    for step in range(space.length):
        legal = space.mask(step, taken)
        taken[step] = (legal * rng.random(legal.shape)).argmax(axis=0)
    return taken


def _propose(run: AgentRun, config: RandomConfig) -> None:
    ledger, rng = run.ledger, np.random.default_rng(run.seed)
    idle = 0
    while not ledger.exhausted and idle < config.patience:
        before = ledger.evaluations
        ledger.outcomes(uniform_plans(ledger.space, config.batch, rng), run.name)
        idle = idle + 1 if ledger.evaluations == before else 0


random_plans = Method(
    "plans whose decisions are drawn uniformly from what is legal",
    RandomConfig,
    lambda budget: RandomConfig(),
    _propose,
)
