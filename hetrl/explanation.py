"""Why one plan is faster than another: where each spends its time, stretch by stretch."""

from __future__ import annotations

import math
from typing import Self

import msgspec


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of a part of one inference, by what they are spent on; they sum to how long it takes.

    :param compute_ms: the slowest part's own work, kernel launches and waits of the queue with it.
    :param contention_ms: what processors that work at the same time slow each other down.
    :param transfer_ms: moving and converting data.
    :param sync_ms: the fixed part of sharing an operator: mapping memory, and waiting for each other.
    :param fallback_ms: operators that ran elsewhere than the plan says, all they take.
    :param idle_ms: rest that a utilization cap imposes.
    :param overlap_ms: zero or negative, what runs beside something that is counted elsewhere.
    """

    compute_ms: float = 0.0
    contention_ms: float = 0.0
    transfer_ms: float = 0.0
    sync_ms: float = 0.0
    fallback_ms: float = 0.0
    idle_ms: float = 0.0
    overlap_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        return math.fsum(getattr(self, kind) for kind in KINDS)

    def plus(self, other: Spent, times: float = 1.0) -> Self:
        """The sum with another; `times` -1 is the difference."""
        return type(self)(**{kind: getattr(self, kind) + times * getattr(other, kind) for kind in KINDS})


KINDS = Spent.__struct_fields__
NOTHING = Spent()


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """What one plan does in a stretch: processors in order of first use, and how many operators it has them share."""

    processors: tuple[str, ...]
    shared_operators: int
    spent: Spent


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """Operators between two points at which neither plan is inside a segment that several processors share.

    :param first: node that it begins with, in the winner's order; `last` the one that it ends with.
    :param saved: the other's time minus the winner's.
    """

    first: str
    last: str
    operators: int
    winner: Side
    against: Side
    saved: Spent

    @property
    def name(self) -> str:
        return self.first if self.first == self.last else f"{self.first} to {self.last}"


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """The winner against another plan; `saved_ms` is how much faster it is (negative where it is slower)."""

    winner: str
    against: str
    winner_ms: float
    against_ms: float
    saved_ms: float
    stretches: tuple[Stretch, ...]
    conclusion: str


def conclude(winner: str, against: str, winner_ms: float, against_ms: float, stretches: tuple[Stretch, ...]) -> str:
    """One sentence: which stretch decides it, and by what."""
    saved = against_ms - winner_ms
    sign = 1.0 if saved >= 0 else -1.0
    stretch = max(stretches, key=lambda s: sign * s.saved.total_ms)
    kind = max(KINDS, key=lambda k: sign * float(getattr(stretch.saved, k)))
    result = f"{winner} is {_ms(abs(saved))} ({100 * abs(saved) / against_ms:.1f} %) "
    result += f"{'faster' if sign > 0 else 'slower'} than {against}"
    if not sign * stretch.saved.total_ms > 0:
        return f"{winner} is as fast as {against}"
    where = "" if len(stretches) == 1 else f", most of all in {stretch.name} ({_ms(abs(stretch.saved.total_ms))})"
    by = f"{_ms(abs(getattr(stretch.saved, kind)))} {'less' if sign > 0 else 'more'} {_WORDS[kind]}"
    return f"{result}{where}: {by}"


_WORDS = {
    "compute_ms": "compute",
    "contention_ms": "contention",
    "transfer_ms": "transfer",
    "sync_ms": "sync",
    "fallback_ms": "fallback",
    "idle_ms": "idling under a cap",
    "overlap_ms": "waiting, as branches run side by side",
}


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
