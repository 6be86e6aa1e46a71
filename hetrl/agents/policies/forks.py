"""Forks of a network: where paths part, where they meet again, and the branches in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetrl.device_bridge.surrogate.workload import Workload

INPUT = -1  # all of a model's inputs together, as a position


@dataclass(frozen=True)
class Fork:
    """A region with one way in and one way out.

    :param entry: position whose results all branches read, `INPUT` for the model's inputs; not in the region.
    :param join: the first position that all paths from the entry go through; not in the region either. It may read
        what was made before the fork.
    :param branches: positions of each, ascending; no two branches exchange anything. A path without operators, such
        as a residual's, is none.
    """

    entry: int
    join: int
    branches: tuple[tuple[int, ...], ...]


def forks(workload: Workload) -> list[Fork]:
    """All forks of two branches and more, by entry: one comes before those that lie inside its branches.

    Paths that only end where the model does, each in an output of its own, do not join.
    """
    before = [sorted({workload.made_at[r.tensor] for r in item.reads} or {INPUT}) for item in workload.items]
    after: list[list[int]] = [[] for _ in range(len(before) + 1)]  # the last one is INPUT's, as in before[-1]
    for position, sources in enumerate(before):
        for source in sources:
            after[source].append(position)
    joins = _joins(after, workload)
    found = []
    for entry in range(INPUT, len(before)):
        if len(after[entry]) > 1 and joins[entry] < len(before):
            branches = _branches(before, entry, joins[entry])
            if len(branches) > 1:
                found.append(Fork(entry, joins[entry], branches))
    return found


def _joins(after: Sequence[Sequence[int]], workload: Workload) -> list[int]:
    """The first position that all paths from each position go through (its immediate post-dominator)."""
    end = len(workload.items)
    results = {workload.made_at[tensor] for tensor in workload.outputs}
    joins = [end] * len(after)
    for position in range(end - 1, INPUT - 1, -1):
        ways = [*after[position], *([end] if position in results else [])]
        while len(set(ways)) > 1:  # whichever comes first goes on to its own join
            first = min(ways)
            ways = [joins[first] if way == first else way for way in ways]
        joins[position] = ways[0] if ways else end
    return joins


def _branches(before: Sequence[Sequence[int]], entry: int, join: int) -> tuple[tuple[int, ...], ...]:
    """What lies between the two, in parts that do not exchange anything; none if there is another way in."""
    branch_of: dict[int, int] = {}
    for position in range(entry + 1, join):
        inside = {branch_of[source] for source in before[position] if source in branch_of}
        if not inside and entry not in before[position]:
            continue
        if any(source != entry and source not in branch_of for source in before[position]):
            return ()
        branch_of[position] = position
        merged = {*inside, position}
        branch_of |= {member: position for member, branch in branch_of.items() if branch in merged}
    return tuple(
        tuple(member for member, branch in branch_of.items() if branch == last)
        for last in dict.fromkeys(branch_of.values())
    )
