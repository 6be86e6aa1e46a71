"""Channels as atoms: one number for each place along an axis, linked where places must go together.

Links and locks are collected while a graph is traced and solved once, in numpy: a graph has tens of thousands of atoms.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
"""The atom at each place of an axis; `FIXED` where a place always stays."""

Axis = Labels | None
"""None: every place of the axis always stays."""

Layout = tuple[Axis, ...]
"""The axes of one tensor."""

FIXED = -1


@dataclass(frozen=True)
class Solved:
    """What follows from all links and locks.

    :param root: for each atom, the first of those that go together with it.
    :param why: for each atom, index into `reasons`, -1 where nothing keeps it.
    """

    root: Labels
    why: Labels
    reasons: tuple[str, ...]

    def free(self, labels: Labels) -> Labels:
        """The atoms, one of each that go together, at these places that may be taken away."""
        roots = np.unique(self.root[labels[labels >= 0]])
        return roots[self.why[roots] < 0]


class Atoms:
    """Collects links and locks."""

    def __init__(self) -> None:
        self._count = 0
        self._links: list[tuple[Labels, Labels]] = []
        self._locks: list[tuple[Labels, str]] = []

    def fresh(self, size: int) -> Labels:
        """Atoms for an axis of that size, each free."""
        labels = np.arange(self._count, self._count + size)
        self._count += size
        return labels

    def link(self, one: Axis, other: Axis, why: str) -> None:
        """Two axes have the same channels, place by place; shapes broadcast.

        :param why: the reason where one of the two is fixed.
        """
        if one is other:
            return
        if one is None or other is None:
            self.lock(one, why)
            self.lock(other, why)
            return
        one, other = np.broadcast_arrays(one, other)
        one, other = one.reshape(-1), other.reshape(-1)
        if min(one.min(), other.min()) < 0:
            self.lock(one[other < 0], why)
            self.lock(other[one < 0], why)
            both = (one >= 0) & (other >= 0)
            one, other = one[both], other[both]
        self._links.append((one, other))

    def lock(self, labels: Axis, why: str) -> None:
        """These stay, for that reason."""
        if labels is not None and labels.size:
            self._locks.append((labels[labels >= 0], why))

    def solved(self) -> Solved:
        root = self._roots()
        reasons = tuple(dict.fromkeys(why for _, why in self._locks))
        index = {why: number for number, why in enumerate(reasons)}
        kept = np.full(self._count, -1, np.int64)
        for labels, why in reversed(self._locks):  # the first reason is the one to tell
            kept[root[labels]] = index[why]
        return Solved(root, kept[root], reasons)

    def _roots(self) -> Labels:
        """Connected components: hook the larger root of each link below the smaller one, shorten paths, repeat."""
        parent = np.arange(self._count)
        if not self._links:
            return parent
        one, other = (np.concatenate(ends) for ends in zip(*self._links, strict=True))
        while True:
            a, b = parent[one], parent[other]
            open_ = a != b
            if not open_.any():
                return parent
            one, other, a, b = one[open_], other[open_], a[open_], b[open_]
            np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
            while True:
                shorter = parent[parent]
                if np.array_equal(shorter, parent):
                    break
                parent = shorter


def joined(parts: list[tuple[Axis, int]]) -> Axis:
    """Axes side by side; each comes with its size."""
    if all(labels is None for labels, _ in parts):
        return None
    return np.concatenate([np.full(size, FIXED) if labels is None else labels for labels, size in parts])


def bounds(sizes: list[int]) -> list[tuple[int, int]]:
    """Begin and end of parts that lie side by side."""
    return list(pairwise([0, *np.cumsum(sizes).tolist()]))
