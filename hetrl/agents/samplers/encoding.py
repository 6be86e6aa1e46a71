"""Plans as a fixed number of parameters, which is what general optimisers take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hetrl.agents.credit import work_weights
from hetrl.agents.samplers.drafts import PRUNING, Bools, Draft, Drawer, Floats, Ints
from hetrl.envs.space import PlanSpace
from hetrl.objective import Objective
from hetrl.plan import Axis

Form = Literal["cuts", "layers"]


@dataclass(frozen=True)
class Parameter:
    """A whole number from 0 to below `count`.

    :param labels: what its values mean; None where they are plain positions.
    :param ordered: whether neighbouring values mean similar plans.
    """

    name: str
    count: int
    labels: tuple[str, ...] | None = None
    ordered: bool = False


class Encoding(ABC):
    """Parameter vectors (P,) to legal decisions (length,), and back as near as possible.

    The first parameters are the global decisions that are worth deciding, the others the placements.
    """

    def __init__(self, space: PlanSpace, objective: Objective) -> None:
        self.drawer = Drawer(space, objective)
        self.space = space
        self._globals = [
            Parameter(space.globals[d].name, len(values), tuple(space.globals[d].choices[v] for v in values))
            for d in self.drawer.free
            for values in [self.drawer.choices(d)]
        ]
        self.parameters = (*self._globals, *self.placements())

    @abstractmethod
    def placements(self) -> Sequence[Parameter]:
        """The parameters after the global ones."""

    @abstractmethod
    def wishes(self, values: Ints) -> tuple[Ints, Bools]:
        """The wanted options and the beginnings (groups,) that those parameters describe."""

    @abstractmethod
    def values(self, draft: Draft) -> list[int]:
        """The values of those parameters that describe a draft as nearly as possible."""

    def decode(self, vector: Ints) -> Ints:
        """(length,) legal decisions of any (P,) values of the parameters."""
        heads = self.drawer.heads
        for value, decision in zip(vector, self.drawer.free, strict=False):
            heads[decision] = self.drawer.choices(decision)[value]
        return self.drawer.settle(Draft(heads, *self.wishes(vector[len(self._globals) :])))

    def encode(self, taken: Ints) -> Ints:
        """(P,) values of the parameters that come nearest to (length,) legal decisions."""
        draft = self.drawer.draft(taken)
        heads = [self.drawer.choices(d).index(int(draft.heads[d])) for d in self.drawer.free]
        return np.array(heads + self.values(draft), dtype=np.int64)


class Layers(Encoding):
    """One placement for every fusion group, among those that it may have."""

    def placements(self) -> Sequence[Parameter]:
        self._possible = [np.flatnonzero(row) for row in self.space.possible]
        names = [self.space.graph.group_node_ids(g)[0] for g in range(self.space.groups)]
        return [
            Parameter(f"placement {name}", len(options), tuple(label(self.space, int(o)) for o in options))
            for name, options in zip(names, self._possible, strict=True)
        ]

    def wishes(self, values: Ints) -> tuple[Ints, Bools]:
        wanted = np.array([options[v] for options, v in zip(self._possible, values, strict=True)], dtype=np.int64)
        return wanted, np.zeros(self.space.groups, dtype=np.bool_)

    def values(self, draft: Draft) -> list[int]:
        return [options.tolist().index(o) for options, o in zip(self._possible, draft.wanted, strict=True)]


class Cuts(Encoding):
    """Pieces of the model: where each begins (the first at 0; at the model's end: not at all), and a placement for it.

    Of two pieces that begin at one place, the later one counts.
    """

    def __init__(self, space: PlanSpace, objective: Objective, pieces: int) -> None:
        self.pieces = min(pieces, len(space.graph.groups))
        super().__init__(space, objective)

    def placements(self) -> Sequence[Parameter]:
        possible: Bools = np.asarray(self.space.possible.any(axis=0))
        self._options = np.array([o for o in self.drawer.order if possible[o]], dtype=np.int64)
        labels = tuple(label(self.space, int(o)) for o in self._options)
        cuts = [Parameter(f"cut {i}", self.space.groups + 1, ordered=True) for i in range(1, self.pieces)]
        return [*cuts, *(Parameter(f"placement {i}", len(labels), labels, ordered=True) for i in range(self.pieces))]

    def wishes(self, values: Ints) -> tuple[Ints, Bools]:
        starts = np.concatenate([[0], values[: self.pieces - 1]])
        by_start = np.argsort(starts, kind="stable")
        piece = np.searchsorted(starts[by_start], np.arange(self.space.groups), side="right") - 1
        wanted = self._options[values[self.pieces - 1 :]][by_start][piece]
        begins = np.isin(np.arange(self.space.groups), starts)
        return wanted, begins

    def values(self, draft: Draft) -> list[int]:
        """By dynamic programming over (pieces, groups, placement of the piece)."""
        space, drawer = self.space, self.drawer
        options, groups, most = self._options, space.groups, self.pieces
        weights = work_weights(space)
        weights /= weights.sum()
        nearest = drawer.nearest[draft.heads[PRUNING]]
        wrong: Floats = weights[:, None] * drawer.distance[nearest[:, options], draft.wanted[:, None]]
        same = np.append(False, draft.wanted[1:] == draft.wanted[:-1])
        again, needless = (same & draft.begins) * 1e-9, (same & ~draft.begins) * 1e-9  # a chain's beginning, and none
        best = np.full((most, len(options)), np.inf)
        best[0] = wrong[0]
        came = np.full((groups, most, len(options)), -1)  # the placement before, where a piece begins
        for k in range(1, groups):
            stay = best + again[k]
            before = best[:-1].argmin(axis=1)
            cheapest = best[:-1].min(axis=1)[:, None] + needless[k]
            switch = np.vstack([np.full(len(options), np.inf), np.repeat(cheapest, len(options), 1)])
            begins: Bools = switch < stay
            came[k][begins] = np.broadcast_to(np.append(-1, before)[:, None], begins.shape)[begins]
            best = np.where(begins, np.broadcast_to(switch, stay.shape), stay) + wrong[k]
        piece, option = np.unravel_index(int(best.argmin()), best.shape)
        cuts, placed = [], [int(option)]
        for k in range(groups - 1, 0, -1):
            if came[k, piece, option] >= 0:
                cuts.append(k)
                piece, option = piece - 1, came[k, piece, option]
                placed.append(int(option))
        spare = most - len(placed)
        return [*reversed(cuts), *[groups] * spare, *reversed(placed), *[placed[0]] * spare]


def encoding(form: Form, space: PlanSpace, objective: Objective, pieces: int) -> Encoding:
    """The encoding of a name; 0 pieces stand for `pieces_for` the model."""
    if form == "layers":
        return Layers(space, objective)
    return Cuts(space, objective, pieces or pieces_for(space.groups))


def pieces_for(groups: int) -> int:
    """How many pieces come within a few percent of the exact plans of models with so many fusion groups."""
    return min(12, 4 + groups // 5)


def label(space: PlanSpace, option: int) -> str:
    """An option for people: `60 % gpu/mace/fp32, 40 % cpu/mace/fp32, height`."""
    placed = space.options[option]
    names = [space.engine.processors[p].id for p in placed.processors]
    if placed.axis is Axis.NONE:
        return names[0]
    parts = [f"{share} % {name}" for share, name in zip(placed.shares_pct, names, strict=True)]
    return ", ".join([*parts, placed.axis.value])
