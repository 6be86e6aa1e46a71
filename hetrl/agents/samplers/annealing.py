"""Simulated annealing over segments (Kirkpatrick et al., Science 1983), cooled geometrically over the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from hetrl.agents.base import AgentRun, Method
from hetrl.agents.ledger import Ledger
from hetrl.agents.samplers.drafts import Draft, Drawer, Floats
from hetrl.agents.samplers.settings import at_least

Move = Callable[[Draft, Drawer, np.random.Generator], None]
BOLDER = 10  # proposals without anything new after which one more move is made at once


class AnnealingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings. At temperature t a plan that is t (a fraction) slower is taken in one of e cases.

    :param hot: first temperature.
    :param cold: last temperature.
    :param cooling: evaluations over which it cools down.
    :param patience: proposals without a new plan after which the search ends.
    """

    hot: float = 0.1
    cold: float = 0.001
    cooling: int
    patience: int = 500

    def __post_init__(self) -> None:
        if not 0 < self.cold <= self.hot:
            raise ValueError(f"cold is {self.cold:g} and hot is {self.hot:g}, 0 < cold <= hot makes sense")
        at_least(self, "cooling", 1)
        at_least(self, "patience", 1)

    def temperature(self, evaluations: int) -> float:
        """After so many evaluations."""
        return self.hot * math.pow(self.cold / self.hot, min(1.0, evaluations / self.cooling))


def _propose(run: AgentRun, config: AnnealingConfig) -> None:
    ledger, rng = run.ledger, np.random.default_rng(run.seed)
    drawer = Drawer(ledger.space, ledger.objective)
    current, cost = _start(run, drawer)
    idle = 0
    while not ledger.exhausted and idle < config.patience:
        before = ledger.evaluations
        draft = moved(current, drawer, rng, 1 + idle // BOLDER)
        new = float(_costs(ledger, drawer, [draft], run.name)[0])
        if new <= cost or rng.random() < math.exp((cost - new) / (cost * config.temperature(before))):
            current, cost = draft, new
        idle = idle + 1 if ledger.evaluations == before else 0


def _start(run: AgentRun, drawer: Drawer) -> tuple[Draft, float]:
    """The best plan so far, or the best that gives one placement to all; with its cost."""
    best = run.ledger.best
    if best is not None and best.trial.decisions is not None:
        return drawer.draft(np.array(best.trial.decisions, dtype=np.int64)), best.cost_ms
    drafts = whole_model(drawer)
    costs = _costs(run.ledger, drawer, drafts, run.name)
    return drafts[int(costs.argmin())], float(costs.min())


def whole_model(drawer: Drawer) -> list[Draft]:
    """For each processor, the plan that gives it all that it takes."""
    groups = drawer.space.groups
    nowhere = np.zeros(groups, dtype=np.bool_)
    return [Draft(drawer.heads, np.full(groups, o), nowhere) for o in np.flatnonzero(drawer.space.single)]


def _costs(ledger: Ledger, drawer: Drawer, drafts: Sequence[Draft], by: str) -> Floats:
    """(B,) the objective's costs of drafts, in ms."""
    found = ledger.outcomes(np.stack([drawer.settle(draft) for draft in drafts], axis=1), by)
    return ledger.objective.cost_ms(
        found.latency_ms, found.accuracy_drop_pct, found.frame_drop_rate, ledger.reference_ms
    )


def moved(draft: Draft, drawer: Drawer, rng: np.random.Generator, moves: int) -> Draft:
    """A draft so many random moves away."""
    new = Draft(draft.heads.copy(), draft.wanted.copy(), draft.begins.copy())
    for _ in range(moves):
        MOVES[int(rng.integers(len(MOVES)))](new, drawer, rng)
    return new


def _shift(draft: Draft, drawer: Drawer, rng: np.random.Generator) -> None:
    """Move a boundary: some groups go over to the neighbouring segment."""
    starts = _starts(draft)
    if len(starts) == 1:
        return _split(draft, drawer, rng)
    which = int(rng.integers(1, len(starts)))
    at, by = starts[which], int(rng.geometric(0.5))
    if rng.random() < 0.5:
        _place(draft, at, min(at + by, len(draft.wanted)), int(draft.wanted[at - 1]))
    else:
        _place(draft, max(0, at - by), at, int(draft.wanted[at]))


def _replace(draft: Draft, drawer: Drawer, rng: np.random.Generator) -> None:
    """Another placement for a segment."""
    start, end = _segment(draft, rng)
    _place(draft, start, end, _other(int(draft.wanted[start]), drawer, rng))


def _split(draft: Draft, drawer: Drawer, rng: np.random.Generator) -> None:
    """Another placement for a part of a segment."""
    start, end = _segment(draft, rng)
    first = int(rng.integers(start, end))
    _place(draft, first, int(rng.integers(first, end)) + 1, _other(int(draft.wanted[start]), drawer, rng))


def _merge(draft: Draft, drawer: Drawer, rng: np.random.Generator) -> None:
    """A segment's placement for the next one too."""
    starts = [*_starts(draft), len(draft.wanted)]
    which = int(rng.integers(1, len(starts)))
    at = int(starts[which - 1])
    neighbour = at - 1 if at and rng.random() < 0.5 else min(int(starts[which]), len(draft.wanted) - 1)
    _place(draft, at, int(starts[which]), int(draft.wanted[neighbour]))


def _begin(draft: Draft, drawer: Drawer, rng: np.random.Generator) -> None:
    """Begin a chain anew somewhere, or no longer."""
    at = int(rng.integers(len(draft.wanted)))
    draft.begins[at] ^= True


def _set_global(draft: Draft, drawer: Drawer, rng: np.random.Generator) -> None:
    """Another choice for the whole plan."""
    if drawer.free:
        decision = drawer.free[int(rng.integers(len(drawer.free)))]
        draft.heads[decision] = rng.choice(drawer.choices(decision))


MOVES: tuple[Move, ...] = (_shift, _shift, _replace, _replace, _split, _merge, _begin, _set_global)


def _starts(draft: Draft) -> list[int]:
    changes = np.append(True, draft.wanted[1:] != draft.wanted[:-1]) | draft.begins
    return [int(k) for k in np.flatnonzero(changes)]


def _segment(draft: Draft, rng: np.random.Generator) -> tuple[int, int]:
    """Where a random segment begins and ends."""
    starts = [*_starts(draft), len(draft.wanted)]
    which = int(rng.integers(len(starts) - 1))
    return starts[which], starts[which + 1]


def _place(draft: Draft, start: int, end: int, option: int) -> None:
    draft.wanted[start:end] = option
    draft.begins[start + 1 : end] = False


def _other(option: int, drawer: Drawer, rng: np.random.Generator) -> int:
    """An option: half of the time a similar one."""
    order = drawer.order
    if rng.random() < 0.5:
        at = int(np.flatnonzero(order == option)[0]) + int(rng.choice((-2, -1, 1, 2)))
        return int(order[at % len(order)])
    return int(rng.integers(len(order)))


annealing = Method(
    "simulated annealing that moves, splits, merges and re-places segments",
    AnnealingConfig,
    lambda budget: AnnealingConfig(cooling=budget),
    _propose,
)
