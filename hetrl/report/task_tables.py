"""Runs of several models as rich tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from hetrl.report.tables import NOTHING, grid, number, percent, short_names

if TYPE_CHECKING:
    from hetrl.tasks.results import Latencies, TaskComparison


def tasks_table(comparison: TaskComparison) -> Table:
    """One line per scheduler, best first; the winner is bold, rows that break the accuracy budget say so."""
    processors = list(comparison.rows[0].utilization) if comparison.rows else []
    short = short_names(processors)
    lossy = any(row.accuracy_drop_pct for row in comparison.rows)
    busy = [f">{short[name]}\nheld" for name in processors]
    headings = ["scheduler", ">misses", ">dropped", ">per\nsecond", ">median\nms", ">p90\nms", ">max\nms", *busy]
    table = grid(*headings, *([">accuracy\ndrop", "budgets"] if lossy else []))
    for row in comparison.rows:
        cells = [row.scheduler, str(row.misses), str(row.dropped), number(row.throughput_per_s)]
        cells += [*_times(row.latency_ms), *(percent(row.utilization[name]) for name in processors)]
        if lossy:
            cells += [f"{row.accuracy_drop_pct:.2f} pt", "kept" if row.keeps_budgets else "broken"]
        style = "bold" if row.scheduler == comparison.winner else "" if row.keeps_budgets else "dim"
        table.add_row(*map(Text, cells), style=style)
    return table


def streams_table(comparison: TaskComparison) -> Table:
    """One line per model, for the winner."""
    table = grid(
        "model", "runs", ">period\nms", ">deadline\nms", ">requests", ">misses", ">median\nms", ">p90\nms", ">max\nms"
    )
    row = next((row for row in comparison.rows if row.scheduler == comparison.winner), None)
    for stream in row.streams if row else ():
        cells = [stream.model, stream.runs, f"{stream.period_ms:g}", f"{stream.deadline_ms:g}"]
        cells += [str(stream.requests), str(stream.misses), *_times(stream.latency_ms)]
        table.add_row(*map(Text, cells))
    return table


def _times(latency: Latencies | None) -> list[str]:
    if latency is None:
        return [NOTHING] * 3
    return [number(latency.median_ms), number(latency.p90_ms), number(latency.max_ms)]


def task_lines(comparison: TaskComparison) -> list[str]:
    """What the tables say, in words."""
    row = next((row for row in comparison.rows if row.scheduler == comparison.winner), None)
    if row is None:
        return ["", "no scheduler keeps the budgets"]
    requests = sum(stream.requests for stream in row.streams)
    missed = f"{row.misses} of {requests} requests miss their deadline"
    return ["", f"best       {row.scheduler}: {missed} ({comparison.evidence.value})"]
