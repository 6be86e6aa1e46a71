"""Into how many submodels OpenVINO's HETERO cuts a graph whose operators each have a device.

Operators that are connected on one device are one piece. A piece that would wait for itself, because a way between two
of its operators leaves the device, is cut where that way comes back: at each edge into an operator behind such a way,
from one that is before it and has something of the piece's start in common with it. That is repeated until nothing
changes (OpenVINO 2026.4, src/plugins/hetero/src/subgraph_collector.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping

Reads = Mapping[str, tuple[str, ...]]
"""What each operator reads of others, operators in topological order; the model's inputs are operators too."""
Edge = tuple[str, str]


def count_submodels(reads: Reads, device_of: Mapping[str, str], constants: Mapping[str, tuple[str, ...]]) -> int:
    """:param device_of: by operator.
    :param constants: names of those that an operator reads.
    """
    cut = {(s, n) for n, sources in reads.items() for s in sources if device_of[s] != device_of[n]}
    while True:
        piece = _pieces(reads, cut)
        more = _waiting(reads, cut, piece, constants)
        if not more:
            return len(set(piece.values()))
        cut |= more


def _pieces(reads: Reads, cut: set[Edge]) -> dict[str, str]:
    """One operator of the piece of each operator, the same for all of the piece."""
    above = {name: name for name in reads}

    def top(name: str) -> str:
        while above[name] != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    for name, sources in reads.items():
        for source in sources:
            if (source, name) not in cut:
                above[top(source)] = top(name)
    return {name: top(name) for name in reads}


def _waiting(
    reads: Reads, cut: set[Edge], piece: Mapping[str, str], constants: Mapping[str, tuple[str, ...]]
) -> set[Edge]:
    """Edges to cut, so that no piece waits for itself. Sets of edges and constants are the bits of a number."""
    bits = _Bits()
    into: dict[str, int] = {}  # by piece, where it starts: edges into it, its constants and inputs of the model
    out_of: dict[str, int] = {}
    before: dict[str, int] = {}  # by operator, all that it comes after
    for name, sources in reads.items():
        starts = [bits.of(("start", name))] if not sources else []
        starts += [bits.of(("constant", constant)) for constant in constants.get(name, ())]
        known = sum_of(starts)
        for source in sources:
            known |= before[source]
            if (source, name) in cut:
                edge = bits.of((source, name))
                starts.append(edge)
                known |= edge
                out_of[piece[source]] = out_of.get(piece[source], 0) | edge
        into[piece[name]] = into.get(piece[name], 0) | sum_of(starts)
        before[name] = known
    left = {name: before[name] & out_of.get(piece[name], 0) for name in reads}
    entered = {name: before[name] & into[piece[name]] for name in reads}
    found: set[Edge] = set()
    for name, sources in reads.items():
        if not left[name]:
            continue
        common = sum_of([entered[edge[0]] for edge in bits.members(left[name])])
        found |= {(s, name) for s in sources if not left[name] & left[s] and common & entered[s]}
    return found - cut


def sum_of(sets: list[int]) -> int:
    """The union."""
    found = 0
    for one in sets:
        found |= one
    return found


class _Bits:
    """A number for each of some things."""

    def __init__(self) -> None:
        self._number: dict[Edge, int] = {}
        self._things: list[Edge] = []

    def of(self, thing: Edge) -> int:
        if thing not in self._number:
            self._number[thing] = len(self._things)
            self._things.append(thing)
        return 1 << self._number[thing]

    def members(self, numbers: int) -> list[Edge]:
        found = []
        while numbers:
            lowest = numbers & -numbers
            found.append(self._things[lowest.bit_length() - 1])
            numbers ^= lowest
        return found
