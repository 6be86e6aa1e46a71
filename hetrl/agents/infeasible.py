"""Which budget no plan keeps, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hetrl.errors import Infeasible
from hetrl.objective import Objective


@dataclass(frozen=True)
class Tried:
    """A plan that was measured; `error` says why it has no numbers."""

    name: str
    accuracy_drop_pct: float
    frame_drop_rate: float | None
    error: str | None


def infeasible(tried: Sequence[Tried], objective: Objective) -> Infeasible:
    """What to tell when none of some plans keeps the budgets; there is at least one plan."""
    worked = [t for t in tried if t.error is None]
    if not worked:
        return Infeasible(
            f"none of {_plans(tried)} runs: {tried[0].name}: {tried[0].error}",
            "choose a smaller model or another device",
        )
    accurate = [t for t in worked if objective.keeps(t.accuracy_drop_pct, None)]
    if not accurate:
        best = min(worked, key=lambda t: t.accuracy_drop_pct)
        return Infeasible(
            f"none of {_plans(worked)} keeps the accuracy: the most accurate ({best.name}) loses "
            f"{_digits(best.accuracy_drop_pct)} points, the limit is {objective.max_accuracy_drop_pct:g}",
            f"give --max-accuracy-drop {_up(best.accuracy_drop_pct)}",
        )
    limit_pct = 100 * (objective.max_frame_drop_rate or 0.0)
    best = min(accurate, key=lambda t: t.frame_drop_rate or 0.0)
    found_pct = 100 * (best.frame_drop_rate or 0.0)
    also = "" if len(accurate) == len(worked) else " that keep the accuracy"
    return Infeasible(
        f"none of {_plans(accurate)}{also} keeps frame drops at most {limit_pct:g} %: the smoothest ({best.name}) "
        f"drops {_digits(found_pct)} % of the frames, {_digits(found_pct - limit_pct)} points too many",
        f"give --max-frame-drop {_up(found_pct)}, or the UI less work (--condition cold,ui=60hz:4ms)",
    )


def broken_words(objective: Objective, accuracy_drop_pct: float, frame_drop_rate: float | None) -> str | None:
    """Which budgets one plan breaks, and by how much; None if it keeps them."""
    words = []
    if not objective.keeps(accuracy_drop_pct, None):
        limit = objective.max_accuracy_drop_pct
        words.append(f"loses {_digits(accuracy_drop_pct)} points of accuracy, the limit is {limit:g}")
    rate = objective.max_frame_drop_rate
    if rate is not None and frame_drop_rate is not None and frame_drop_rate > rate:
        words.append(f"drops {_digits(100 * frame_drop_rate)} % of the frames, the limit is {100 * rate:g} %")
    return " and ".join(words) or None


def _plans(tried: Sequence[Tried]) -> str:
    return f"{len(tried)} plan{'s' if len(tried) > 1 else ''}"


def _digits(value: float) -> str:
    """Three digits, no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _up(value: float) -> str:
    """Rounded up to a tenth: a limit that the plan keeps."""
    return f"{math.ceil(value * 10 - 1e-9) / 10:g}"
