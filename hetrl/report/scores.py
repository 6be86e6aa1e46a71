"""Scores, drops and fidelity as tables and lines."""

from __future__ import annotations

from rich.table import Table

from hetrl.report.tables import NOTHING, grid, number
from hetrl.scoring.results import Drop, Fidelity, PredictedDrop, Score, Scores

SHARES = ("top1", "top5")


def scores_table(found: Scores) -> Table:
    """One line for the model, and one for the original if there is one."""
    table = grid("model", "metric", ">value", ">90 %\ninterval", ">samples", "")
    for name, score in ((found.model, found.score), (found.against, found.original)):
        if score is not None and name is not None:
            cells = (number(score.value, score.unit), _interval(score.interval), str(score.count), str(score.evidence))
            table.add_row(name, _metric(score), *cells)
    return table


def scores_lines(found: Scores) -> list[str]:
    """What else is known: the drop, the fidelity, the prediction, each with its own word."""
    lines = []
    if found.drop is not None:
        lines.append(f"drop       {_drop(found.drop)}")
    if found.fidelity is not None:
        lines.append(f"fidelity   {_fidelity(found.fidelity)}")
    if found.predicted is not None:
        lines.append(f"predicted  {_predicted(found.predicted)}")
    return lines


def _metric(score: Score) -> str:
    return score.metric if score.larger_is_better else f"{score.metric} (less is better)"


def _interval(bounds: tuple[float, float] | None) -> str:
    return NOTHING if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def _drop(drop: Drop) -> str:
    unit = "points" if drop.metric in SHARES else f"% of the original's {drop.metric}"
    bounds = "" if drop.interval is None else f" (90 % interval {_interval(drop.interval)})"
    return f"{number(drop.points)} {unit}{bounds}, {drop.evidence}"


def _fidelity(close: Fidelity) -> str:
    same = "" if close.top1_agreement_pct is None else f", same top class for {close.top1_agreement_pct:.0f} %"
    return (
        f"cosine {close.cosine:.4f}, largest error {close.relative_error:.3g} of the largest value{same}; "
        f"{close.count} random inputs, no accuracy"
    )


def _predicted(drop: PredictedDrop) -> str:
    int8 = ", int8" if drop.int8 else ""
    return f"{drop.points:.2f} points of top-1 accuracy lost, with {100 * drop.kept_weights:.1f} % of the weights{int8}"
