"""The comparison of plans as a table and as lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from hetrl.report.tables import (
    ACCURACY,
    NOTHING,
    bound_line,
    cells_table,
    faster,
    gap,
    latency,
    number,
    percent,
    row_cells,
    short_names,
)
from hetrl.results import best_single

if TYPE_CHECKING:
    from hetrl.results import Comparison, Row

LEFT_OUT = ("busy", ">model\nMB", ">energy\nmJ", ">memory\nMB", ">fell\nback")  # where a line is too short


def comparison_table(comparison: Comparison, width: int = 80) -> Table:
    """Fastest first; the winner is bold, rows that break a budget say so.

    :param width: characters of a line; what does not fit is left out, the least important columns first.
    """
    rows = comparison.rows
    cells = row_cells(rows, {
        ">vs best\nsingle": [_times(row.speedup_over_single) for row in rows],
        ">above\nbound" if comparison.bound_ms is not None else ">budgets": [verdict(row) for row in rows],
    })  # fmt: skip
    if any(row.fallback_ratio for row in rows):
        cells[">fell\nback"] = [percent(row.fallback_ratio) for row in rows]
    cells[">model\nMB"] = [number(row.model_size_mb) for row in rows]
    short = short_names([name for row in rows for name in row.utilization])
    cells["busy"] = [" ".join(f"{short[p]} {100 * u:.0f} %" for p, u in row.utilization.items()) for row in rows]
    lossy = any(row.accuracy_drop_pct for row in rows if row.keeps_budgets)
    for heading in (*(() if lossy else (ACCURACY,)), *LEFT_OUT):  # the lines below tell what breaks the accuracy
        if _width(cells) > width:
            cells.pop(heading, None)
    table = cells_table(cells, rows)
    for line, row in zip(table.rows, rows, strict=True):
        if row.policy == comparison.winner:
            line.style = "bold"
    return table


def comparison_lines(comparison: Comparison) -> list[str]:
    """What the table says, in words: the winner and its certificate, what breaks which budget, whence the numbers."""
    lines = [""]
    winner = comparison.best
    if winner is not None:
        lines.append(
            f"best       {winner.policy}, {latency(winner.latency_ms, winner.latency_interval_ms, winner.evidence)}"
        )
        single = best_single(comparison.rows)
        if single is not None and winner is not single:
            lines[-1] += (
                f", {faster(winner.latency_ms, single.latency_ms)} the speed of one processor ({single.processors[0]})"
            )
        if winner.gap_to_exact is not None and comparison.bound_ms is not None:
            lines.append(bound_line(winner.gap_to_exact, comparison.bound_ms, winner.evidence))
    lines += [f"broken     {row.policy} {row.breaks}" for row in comparison.rows if row.breaks]
    lines += [f"failed     {row.policy}: {row.error}" for row in comparison.rows if row.error]
    by_evidence: dict[str, list[str]] = {}
    for row in comparison.rows:
        by_evidence.setdefault(row.evidence.value, []).append(row.policy)
    usual = max(by_evidence, key=lambda evidence: len(by_evidence[evidence]), default=NOTHING)
    others = [f"{evidence}: {', '.join(names)}" for evidence, names in by_evidence.items() if evidence != usual]
    lines.append(f"evidence   {'; '.join([f'{usual} latencies', *others])}")
    return lines


def _times(speedup: float | None) -> str:
    return NOTHING if speedup is None else f"{speedup:.2f}x"


def verdict(row: Row) -> str:
    """A row's certificate in a word, or why it has none."""
    if row.error is not None:
        return "failed"
    if not row.keeps_budgets:
        return "broken"
    return "kept" if row.gap_to_exact is None else gap(row.gap_to_exact)


def _width(cells: dict[str, list[str]]) -> int:
    """Characters of a line that wraps nothing."""
    texts = ((*heading.lstrip(">").split("\n"), *column) for heading, column in cells.items())
    return sum(max(map(len, column)) for column in texts) + len(cells) - 1
