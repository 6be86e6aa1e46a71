"""Small changes to plans, many at once, in a form in which every combination is a legal plan.

There a plan has a placement and a cut for every fusion group, next to its global decisions. Cuts matter only between
groups that one height split may chain; what a group or the granularity forbids becomes the group's first possible
processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.surrogate.tables import MAX_CHAIN
from hetrl.envs.space import CONTINUE, GRANULARITIES, Granularity, PlanSpace

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
INTRA_OP, INTER_OP = GRANULARITIES.index(Granularity.INTRA_OP), GRANULARITIES.index(Granularity.INTER_OP)
GLOBAL_CHANCE, SWAP_CHANCE, CUT_CHANCE = 0.05, 0.4, 0.2


@dataclass(frozen=True)
class Layout:
    """B plans: global decisions (H, B), and per fusion group (G, B) the option and whether a segment begins there."""

    head: Ints
    option: Ints
    cut: Bools

    def take(self, where: Ints) -> Layout:
        return Layout(self.head[:, where], self.option[:, where], self.cut[:, where])

    def put(self, where: Ints, other: Layout) -> None:
        """Overwrite the plans at `where`."""
        self.head[:, where], self.option[:, where], self.cut[:, where] = other.head, other.option, other.cut


class Moves:
    """Makes and varies layouts of one space.

    :param slowing: whether window, slicing and caps are varied too, which to a surrogate only cost time.
    """

    def __init__(self, space: PlanSpace, *, slowing: bool) -> None:
        self._space = space
        sizes = [len(decision.choices) for decision in space.globals]
        free = [i for i, size in enumerate(sizes) if i > 0 and size > 1 and (i < 3 or slowing)]
        self._free = [0, *free] if space.branches else free
        self._choices = [[INTRA_OP, INTER_OP] if i == 0 else list(range(size)) for i, size in enumerate(sizes)]
        self._possible = np.array([space.possible_at(c) for c in space.compressions])  # (compressions, G, O)
        self._fallback = (self._possible & space.single).argmax(axis=2)  # (compressions, G)
        self._stays = space.single | space.chained

    def of(self, taken: Ints) -> Layout:
        """Complete decisions (length, B) as layouts."""
        first = len(self._space.globals)
        batch, _ = self._space.schedules(taken)
        head = taken[:first].copy()
        head[0] = np.where(batch.overlap, INTER_OP, INTRA_OP)
        return Layout(head, batch.option.copy(), taken[first:] != CONTINUE)

    def random(self, size: int, rng: np.random.Generator) -> Layout:
        """Layouts with long runs of one placement and short ones alike."""
        groups = self._space.groups
        head = np.zeros((len(self._choices), size), dtype=np.int64)
        head[0] = INTRA_OP
        for i in self._free:
            head[i] = rng.choice(self._choices[i], size=size)
        each = rng.integers(len(self._space.options), size=(groups, size))
        change = rng.random((groups, size)) < rng.random(size)
        change[0] = True
        start = np.maximum.accumulate(np.where(change, np.arange(groups)[:, None], 0), axis=0)
        return Layout(head, np.take_along_axis(each, start, axis=0), change)

    def varied(self, layouts: Layout, rng: np.random.Generator) -> Layout:
        """One move each: a placement for a run of groups, often one that the run or a neighbour has already in
        another plan; other cuts; another global decision."""
        size = layouts.head.shape[1]
        head, option, cut = layouts.head.copy(), layouts.option.copy(), layouts.cut.copy()
        groups, columns = self._space.groups, np.arange(size)
        position = np.arange(groups)[:, None]
        begin = rng.integers(groups, size=size)
        long = np.exp(rng.random(size) * np.log(groups)).astype(np.int64)  # a group, or a chain of many, alike
        run = (position >= begin) & (position < begin + long)
        kind = rng.random(size)
        swap = kind < SWAP_CHANCE  # a run as another plan has it
        mates = rng.integers(size, size=size)
        option = np.where(run & swap, layouts.option[:, mates], option)
        cut = np.where(run & swap, layouts.cut[:, mates], cut)
        recut = (kind >= SWAP_CHANCE) & (kind < SWAP_CHANCE + CUT_CHANCE)
        flips = run & (position == begin) & recut
        place = kind >= SWAP_CHANCE + CUT_CHANCE
        possible = self._possible[head[2], begin] * rng.random((size, len(self._space.options)))
        option = np.where(run & place, possible.argmax(axis=1), option)
        cut = np.where(run & place, rng.random(size) < 0.5, cut) ^ flips
        if self._free:
            which = np.array(self._free)[rng.integers(len(self._free), size=size)]
            for b in columns[rng.random(size) < GLOBAL_CHANCE]:
                head[which[b], b] = rng.choice(self._choices[which[b]])
        return Layout(head, option, cut)

    def decisions(self, layouts: Layout) -> Ints:
        """(length, B) legal decisions."""
        space, head = self._space, layouts.head
        groups = np.arange(space.groups)[:, None]
        allowed = self._possible[head[2], groups, layouts.option]
        option = np.where(allowed, layouts.option, self._fallback[head[2]].T)
        begins = np.ones(option.shape, dtype=np.bool_)
        begins[1:] = option[1:] != option[:-1]
        begins[1:] |= ~self._stays[option[1:]] | (space.chained[option[1:]] & (layouts.cut[1:] | (head[0] == INTER_OP)))
        start = np.maximum.accumulate(np.where(begins, groups, 0), axis=0)
        begins |= space.chained[option] & ((groups - start) % MAX_CHAIN == 0)
        return np.vstack([head, np.where(begins, option + 1, CONTINUE)])
