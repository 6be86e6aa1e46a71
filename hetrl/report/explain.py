"""Where one plan beats another, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from hetrl.report.tables import grid, short_names

if TYPE_CHECKING:
    from hetrl.explanation import Explanation, Side, Spent, Stretch

SHOWN = 10  # stretches that get a line of their own
ROUNDS_TO_ZERO = 0.0005  # ms


def stretches_table(told: Explanation) -> Table:
    """Milliseconds that the winner saves, the stretches that matter most first; the last line is their sum."""
    kinds = _kinds(told)
    differ = [s for s in told.stretches if any(abs(getattr(s.saved, kind)) >= ROUNDS_TO_ZERO for kind in kinds)]
    shown = sorted(differ, key=lambda s: -abs(s.saved.total_ms))[:SHOWN]
    others = [stretch for stretch in told.stretches if stretch not in shown]
    short = short_names([p for s in told.stretches for side in (s.winner, s.against) for p in side.processors])
    table = grid("stretch", f"{told.winner}\non", f"{told.against}\non", ">saved\nms", *_headings(kinds), gap=1)
    for stretch in shown:
        sides = (_on(side, stretch, short) for side in (stretch.winner, stretch.against))
        table.add_row(*map(Text, (stretch.name, *sides, *_cells(stretch.saved, kinds))))
    if others:
        table.add_row(*map(Text, (f"{len(others)} others", "", "", *_cells(_sum([s.saved for s in others]), kinds))))
    if len(told.stretches) > 1:
        total = _sum([s.saved for s in told.stretches])
        table.add_row(*map(Text, ("all", "", "", *_cells(total, kinds))), style="bold")
    return table


def spent_table(told: Explanation) -> Table:
    """What both plans spend their time on, over the whole model."""
    kinds = _kinds(told)
    table = grid("", ">latency\nms", *_headings(kinds))
    sides = (
        (told.winner, [stretch.winner.spent for stretch in told.stretches]),
        (told.against, [stretch.against.spent for stretch in told.stretches]),
    )
    for name, spent in sides:
        table.add_row(*map(Text, (name, *(cell.lstrip("+") for cell in _cells(_sum(spent), kinds)))))
    return table


def _kinds(told: Explanation) -> list[str]:
    """What either plan spends any time on."""
    from hetrl.explanation import KINDS

    spent = [side.spent for stretch in told.stretches for side in (stretch.winner, stretch.against)]
    return [kind for kind in KINDS if any(abs(getattr(s, kind)) >= ROUNDS_TO_ZERO for s in spent)]


def _headings(kinds: Sequence[str]) -> list[str]:
    return [f">{kind.removesuffix('_ms')}" for kind in kinds]


def _cells(spent: Spent, kinds: Sequence[str]) -> list[str]:
    return [_signed(ms) for ms in (spent.total_ms, *(getattr(spent, kind) for kind in kinds))]


def _signed(ms: float) -> str:
    return "0" if abs(ms) < ROUNDS_TO_ZERO else f"{ms:+.3f}" if abs(ms) < 1 else f"{ms:+.2f}"


def _on(side: Side, stretch: Stretch, short: dict[str, str]) -> str:
    """`gpu+cpu` where they share operators, `gpu, cpu` where they take turns."""
    names = [short[name] for name in side.processors]
    return ("+" if side.shared_operators else ", ").join(names)


def _sum(spent: Sequence[Spent]) -> Spent:
    from hetrl.explanation import NOTHING

    total = NOTHING
    for one in spent:
        total = total.plus(one)
    return total
