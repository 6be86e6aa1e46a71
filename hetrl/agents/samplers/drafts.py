"""Plans as searches change them: a wish for every fusion group, settled to the nearest legal decisions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.surrogate.tables import MAX_CHAIN
from hetrl.envs.space import CONTINUE, GRANULARITIES, Granularity, PlanSpace
from hetrl.objective import Objective
from hetrl.plan import Axis

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
PRUNING = 2  # the index of the compression among the global decisions
INTER_OP, INTRA_OP = GRANULARITIES.index(Granularity.INTER_OP), GRANULARITIES.index(Granularity.INTRA_OP)
OTHER_AXIS = 1  # percent of the work: the same shares along another axis are nearer than any other shares


@dataclass(frozen=True)
class Draft:
    """A plan in the making.

    :param heads: (globals,) the global decisions.
    :param wanted: (groups,) the option that each fusion group should have.
    :param begins: (groups,) where a height split that could go on begins anew.
    """

    heads: Ints
    wanted: Ints
    begins: Bools


class Drawer:
    """Turns drafts into legal decisions of a space, and back."""

    def __init__(self, space: PlanSpace, objective: Objective) -> None:
        self.space = space
        self.objective = objective

    def settle(self, draft: Draft) -> Ints:
        """(length,) legal decisions: each group gets the nearest option to the wanted one that it may have.

        Neighbours of one option are one segment as far as that is allowed: height splits up to the longest chain.
        """
        space = self.space
        overlap = int(draft.heads[0] == INTER_OP)
        options = self.nearest[draft.heads[PRUNING], np.arange(space.groups), draft.wanted].tolist()
        codes, length = [], 0
        heads = draft.heads.copy()
        if len(set(options)) == 1:  # nothing is side by side
            overlap, heads[0] = 0, INTRA_OP
        for k, option in enumerate(options):
            same = k > 0 and options[k - 1] == option
            chains = bool(space.chained[option]) and not overlap and length < MAX_CHAIN and not draft.begins[k]
            length = length + 1 if same and (space.single[option] or chains) else 1
            codes.append(1 + option if length == 1 else CONTINUE)
        return np.array([*heads, *codes], dtype=np.int64)

    def draft(self, taken: Ints) -> Draft:
        """The draft that settles to the plan of (length,) legal decisions."""
        space = self.space
        batch, _ = space.schedules(taken[:, None])
        option, start = batch.option[:, 0], batch.start[:, 0]
        heads = taken[: len(space.globals)].copy()
        heads[0] = INTER_OP if batch.overlap[0] else INTRA_OP
        positions = np.arange(space.groups)
        before = np.append(0, positions[1:] - start[:-1])  # how long the segment before a position is
        begins = (start == positions) & space.chained[option] & (before < MAX_CHAIN)
        return Draft(heads, option, begins)

    @cached_property
    def free(self) -> tuple[int, ...]:
        """Global decisions that are worth deciding: with several choices, and not only ever a waste of time.

        Caps, queue windows and slices cost time, and pay where frames are limited; side by side needs branches.
        """
        space = self.space
        limited = self.objective.max_frame_drop_rate is not None
        useful = [space.branches, True, True, *[limited] * (len(space.globals) - 3)]
        return tuple(i for i, d in enumerate(space.globals) if useful[i] and len(d.choices) > 1)

    def choices(self, decision: int) -> tuple[int, ...]:
        """The choices of a global decision that are worth trying."""
        return (INTRA_OP, INTER_OP) if decision == 0 else tuple(range(len(self.space.globals[decision].choices)))

    @property
    def heads(self) -> Ints:
        """(globals,) the first choice of every global decision."""
        heads = np.zeros(len(self.space.globals), dtype=np.int64)
        heads[0] = INTRA_OP
        return heads

    @cached_property
    def shares(self) -> Floats:
        """(O, processors) percent of the work that each processor has under each option."""
        shares = np.zeros((len(self.space.options), len(self.space.engine.processors)))
        for number, option in enumerate(self.space.options):
            shares[number, list(option.processors)] = option.shares_pct
        return shares

    @cached_property
    def order(self) -> Ints:
        """(O,) options in an order in which neighbours are alike: from processor to processor by height, and back."""
        along = [Axis.OUTPUT_CHANNELS is o.axis for o in self.space.options]
        keys = [(a, tuple(s if a else -s)) for a, s in zip(along, self.shares, strict=True)]
        return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)

    @cached_property
    def distance(self) -> Floats:
        """(O, O) percent of the work that moves from one processor to another between two options."""
        moved = np.abs(self.shares[:, None] - self.shares[None]).sum(axis=2) / 2
        axes = np.array([list(Axis).index(o.axis) for o in self.space.options])
        return np.asarray(moved + OTHER_AXIS * (axes[:, None] != axes[None]), dtype=np.float64)

    @cached_property
    def nearest(self) -> Ints:
        """(compressions, groups, O) the option for what is wanted."""
        space = self.space
        found = np.zeros((len(space.compressions), space.groups, len(space.options)), dtype=np.int64)
        for number, compression in enumerate(space.compressions):
            legal = space.possible_at(compression)
            away = np.where(legal[:, None, :], self.distance[None], np.inf)  # (groups, wanted, O)
            found[number] = away.argmin(axis=2)
        return found
