"""Every plan of a small part of a plan space, each once: a ground truth to compare searches with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from hetrl.device_bridge.surrogate.tables import MAX_CHAIN
from hetrl.envs.space import CONTINUE, GRANULARITIES, Granularity, PlanSpace
from hetrl.errors import UnknownName, UsageError
from hetrl.plan import Plan


@dataclass(frozen=True)
class Restriction:
    """Which plans; memory type, pruning, queue window, slicing and caps are always the space's first choices.

    :param max_segments: None for any number.
    :param processors: None for all.
    :param splits: whether segments may be shared.
    :param overlap: whether plans may run independent groups side by side (each such plan is one more).
    """

    max_segments: int | None = None
    processors: tuple[str, ...] | None = None
    splits: bool = True
    overlap: bool = True

    def __post_init__(self) -> None:
        if self.max_segments is not None and self.max_segments < 1:
            raise UsageError(f"a plan has no {self.max_segments} segments", "allow at least 1")


ALL = Restriction()


@dataclass(frozen=True)
class _State:
    """Where a plan's decisions are: in a segment of `length` groups with option `placed`, the `segments`th.

    :param mixed: two options have been chosen, without which nothing can run side by side.
    """

    group: int
    placed: int = 0
    length: int = 0
    segments: int = 0
    mixed: bool = False


class Enumeration:
    """The plans of a space that a restriction leaves.

    :raises UnknownName: a processor that the space does not have.
    """

    def __init__(self, space: PlanSpace, restriction: Restriction = ALL) -> None:
        self._space = space
        self._most = restriction.max_segments or space.groups
        known = [p.id for p in space.engine.processors]
        for name in restriction.processors or ():
            if name not in known:
                raise UnknownName("processor", name, known, "hetrl devices")
        allowed = {known.index(name) for name in restriction.processors or known}
        self._options = frozenset(
            index
            for index, option in enumerate(space.options)
            if set(option.processors) <= allowed and (restriction.splits or not option.split)
        )
        side_by_side = restriction.overlap and space.branches
        self._granularities = (Granularity.INTRA_OP, *([Granularity.INTER_OP] if side_by_side else []))
        self._next = cache(self._next_states)
        self._completions = cache(self._count)

    @property
    def count(self) -> int:
        """How many there are, without making them; may be far more than `len` could say."""
        return sum(self._completions(granularity, _State(0)) for granularity in self._granularities)

    def __iter__(self) -> Iterator[Plan]:
        for granularity in self._granularities:
            for codes in self._walk(granularity, _State(0)):
                taken = np.zeros(self._space.length, dtype=np.int64)
                taken[0] = GRANULARITIES.index(granularity)
                taken[len(self._space.globals) :] = codes
                yield self._space.plan(taken)

    def _walk(self, granularity: Granularity, state: _State) -> Iterator[tuple[int, ...]]:
        if state.group == self._space.groups:
            yield ()
            return
        for code, after in self._next(granularity, state):
            if self._completions(granularity, after):
                for rest in self._walk(granularity, after):
                    yield (code, *rest)

    def _count(self, granularity: Granularity, state: _State) -> int:
        if state.group == self._space.groups:
            return int(state.mixed or granularity is not Granularity.INTER_OP)
        return sum(self._completions(granularity, after) for _, after in self._next(granularity, state))

    def _next_states(self, granularity: Granularity, state: _State) -> tuple[tuple[int, _State], ...]:
        """Legal codes of the next group, and where each leads."""
        number, first = np.array([GRANULARITIES.index(granularity)]), state.group == 0
        unpruned, placed, length = np.array([0]), np.array([state.placed]), np.array([state.length])
        legal = self._space.group_mask(state.group, number, unpruned, placed, length)[:, 0]
        found = []
        for code in np.flatnonzero(legal).tolist():
            option = state.placed if code == CONTINUE else code - 1
            mixed = state.mixed or (not first and option != state.placed)
            if code == CONTINUE:
                # Longer chains than the longest differ in nothing that a mask looks at.
                after = _State(state.group + 1, option, min(state.length + 1, MAX_CHAIN), state.segments, mixed)
            else:
                after = _State(state.group + 1, option, 1, state.segments + 1, mixed)
            if option in self._options and after.segments <= self._most:
                found.append((code, after))
        return tuple(found)


def enumerate_plans(space: PlanSpace, limit: int, restriction: Restriction = ALL) -> Enumeration:
    """All plans that the restriction leaves: `count` of them is known at once, iteration makes them.

    :raises UsageError: they are more than `limit`, or none.
    """
    found = Enumeration(space, restriction)
    count = found.count
    if count > limit:
        raise UsageError(f"{count} plans are more than {limit}", "allow fewer segments or processors, or more plans")
    if not count:
        raise UsageError("no plan is left", "allow more segments or processors")
    return found
