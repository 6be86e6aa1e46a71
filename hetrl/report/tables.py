"""Rows, results and plans as rich tables and lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from hetrl.accuracy import drop_words
from hetrl.results import OPTIMAL_WITHIN

if TYPE_CHECKING:
    from hetrl.compression import Compression
    from hetrl.measurement import Fallback, SegmentTiming
    from hetrl.plan import Evidence, Plan, Segment
    from hetrl.results import PolicyLatency, Result, Row

NOTHING = "-"
ACCURACY = ">accuracy\ndrop"
UNKNOWN_OPTIMUM = "what is possible is known of surrogates, not of this device"


def grid(*headings: str, gap: int = 2) -> Table:
    """An empty table; a heading that starts with `>` is right-aligned, and its column never wraps.

    :param gap: blanks between columns.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for heading in headings:
        if heading.startswith(">"):
            table.add_column(heading[1:], justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold")
    return table


def number(value: float | None, unit: str = "") -> str:
    """Four significant digits, no exponent from 0.0001 to a million."""
    if value is None:
        return NOTHING
    text = f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:#.4g}"
    return f"{text} {unit}" if unit else text


def interval(bounds_ms: tuple[float, float] | None) -> str:
    """`119-160`, three significant digits, which is more than intervals deserve."""
    if bounds_ms is None:
        return NOTHING
    return "-".join(f"{ms:.0f}" if ms >= 99.95 else f"{ms:#.3g}" for ms in bounds_ms)


def percent(fraction: float | None) -> str:
    return NOTHING if fraction is None else f"{100 * fraction:.1f} %"


def rows_table(rows: Sequence[Row], best_hand: PolicyLatency | None = None) -> Table:
    """One line per row, in the given order; `best_hand` is what each latency is set against."""
    if best_hand is None:
        return _rows_table(rows)
    return _rows_table(rows, "vs best\nhand", best_hand.latency_ms)


def _rows_table(rows: Sequence[Row], against: str | None = None, reference_ms: float | None = None) -> Table:
    beside = {} if against is None else {f">{against}": [faster(row.latency_ms, reference_ms) for row in rows]}
    cells = row_cells(rows, beside)
    if any(row.error is not None or not row.keeps_budgets for row in rows):
        cells["budgets"] = [row.error or ("kept" if row.keeps_budgets else "broken") for row in rows]
    cells["evidence"] = [row.evidence.value for row in rows]
    return cells_table(cells, rows)


def row_cells(rows: Sequence[Row], beside: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Columns by heading; those in which every row says the same good thing (no accuracy lost) are left out.

    :param beside: further columns, shown next to the latency.
    """
    short = short_names([name for row in rows for name in row.processors])
    cells: dict[str, list[str]] = {"policy": [row.policy for row in rows]}
    cells[">latency\nms"] = [number(row.latency_ms) for row in rows]
    if any(row.latency_interval_ms for row in rows):
        cells[">90 % in\nms"] = [interval(row.latency_interval_ms) for row in rows]
    cells |= beside
    cells[">memory\nMB"] = [number(row.peak_memory_mb) for row in rows]
    cells[">energy\nmJ"] = [number(row.energy_mj) for row in rows]
    cells[">frame\ndrops"] = [percent(row.frame_drop_rate) for row in rows]
    if any(row.accuracy_drop_pct for row in rows):
        cells[ACCURACY] = [f"{row.accuracy_drop_pct:.2f} pt" for row in rows]
    cells["runs on"] = ["+".join(short[name] for name in row.processors) or NOTHING for row in rows]
    return cells


def cells_table(cells: Mapping[str, list[str]], rows: Sequence[Row]) -> Table:
    """Columns as a table; rows that do not keep the budgets are dim."""
    table = grid(*cells, gap=1)
    for row, line in zip(rows, zip(*cells.values(), strict=True), strict=True):
        table.add_row(*map(Text, line), style="" if row.keeps_budgets else "dim")
    return table


def _width(cells: dict[str, list[str]]) -> int:
    """Characters of a line that wraps nothing."""
    texts = ((*heading.lstrip(">").split("\n"), *column) for heading, column in cells.items())
    return sum(max(map(len, column)) for column in texts) + len(cells) - 1


def short_names(processors: Sequence[str]) -> dict[str, str]:
    """`cpu` for `cpu/mace/fp32`, where no other of the processors is a CPU."""
    units = Counter(name.partition("/")[0] for name in set(processors))
    return {name: unit if units[unit := name.partition("/")[0]] == 1 else name for name in processors}


def faster(latency_ms: float | None, reference_ms: float | None) -> str:
    """How many times faster than the reference."""
    return f"{reference_ms / latency_ms:.2f}x" if latency_ms and reference_ms else NOTHING


def gap(gap_to_exact: float) -> str:
    """`optimal`, or how far above the proven bound: `1.2 %`. Plans outside the search space may lie below it."""
    if abs(gap_to_exact) <= OPTIMAL_WITHIN:
        return "optimal"
    return percent(gap_to_exact) if abs(gap_to_exact) >= 0.0005 else "< 0.1 %"


def certificate(gap_to_exact: float) -> str:
    """`optimal`, or `within 1.2 % of a proven bound`."""
    word = gap(gap_to_exact)
    return word if word == "optimal" else f"within {word.removeprefix('< ')} of a proven bound"


def bound_line(gap_to_exact: float | None, bound_ms: float | None, evidence: Evidence, none: str = "") -> str:
    """A plan's certificate, and what it means.

    :param none: why there is none, where the gap or the bound is None.
    """
    if gap_to_exact is None or bound_ms is None:
        return f"bound      no certificate: {none}"
    return (
        f"bound      {certificate(gap_to_exact)}: no plan of the search space is faster than "
        f"{number(bound_ms, 'ms')} ({evidence.value})"
    )


def latency(latency_ms: float | None, bounds_ms: tuple[float, float] | None, evidence: Evidence) -> str:
    """`138.0 ms (calibrated, 90 % in 119-160 ms)`."""
    said = f", 90 % in {interval(bounds_ms)} ms" if bounds_ms else ""
    return f"{number(latency_ms, 'ms')} ({evidence.value}{said})"


def result_lines(result: Result) -> list[str]:
    """Where the plan is, what it does, and how good it is."""
    bounds_ms = next((row.latency_interval_ms for row in result.rows if row.policy == "learned"), None)
    lines = [f"latency    {latency(result.latency_ms, bounds_ms, result.evidence)}"]
    if result.best_hand is not None:
        best = result.best_hand
        lines[0] += f", {faster(result.latency_ms, best.latency_ms)} the speed of the best hand policy ({best.policy})"
    lines.append(bound_line(result.gap_to_exact, result.bound_ms, result.evidence, UNKNOWN_OPTIMUM))
    lines.append(f"does       {plan_words(result.plan)}")
    if result.accuracy is not None:
        seen = result.accuracy
        told = drop_words(seen.metric, seen.drop_pct, seen.interval_pct)
        lines.append(f"accuracy   {told}, {seen.evidence.value} on {seen.samples} samples that were held back")
    if result.plan_path:
        lines.append(f"plan       {result.plan_path}")
    lines.append(
        f"effort     {result.evaluations} evaluations, {result.env_steps} decisions while learning, "
        f"{result.wall_s:.1f} s{', interrupted: best so far' if result.interrupted else ''}"
    )
    return lines + [f"note       {note}" for note in result.notes]


def plan_words(plan: Plan) -> str:
    """What a plan does, in one sentence."""
    count = len(plan.segments)
    words = [f"{count} segment{'s' if count > 1 else ''} on {' and '.join(plan.processors)}"]
    words.append(f"{plan.splits} of them split" if plan.splits else "none of them split")
    memories = sorted({segment.memory.value for segment in plan.segments if segment.memory is not None})
    if memories:
        words.append(f"{' and '.join(memories)} memory")
    words += globals_words(plan)
    return ", ".join(words)


def globals_words(plan: Plan) -> list[str]:
    """A plan's global decisions, those that it takes."""
    words = [f"{cap.processor} busy at most {percent(cap.duty)} of the time" for cap in plan.caps]
    if plan.process_cap:
        words += ["idle priority"] if plan.process_cap.idle_priority else []
        quota = plan.process_cap.quota_cpus
        words += [] if quota is None else [f"CPU time of {quota:g} cores"]
    if plan.queue_window is not None:
        words.append(f"queue window {plan.queue_window}")
    if plan.kernel_slice_ms is not None:
        words.append(f"kernels in slices of {plan.kernel_slice_ms:g} ms")
    words += _compression_words(plan.compression)
    return words


def _compression_words(compression: Compression) -> list[str]:
    words = []
    if compression.prunes:
        shares = " / ".join(percent(ratio) for ratio in compression.ratios)
        by_stage = " by stage" if len(compression.ratios) > 1 else ""
        left = f", multiples of {compression.multiple} left" if compression.channel_multiple else ""
        words.append(f"{shares} of the prunable channels taken away{by_stage}{left}")
    if compression.low_rank:
        words.append(f"kernels of low rank with {percent(compression.low_rank)} of their weights")
    if compression.artefact_sha256:
        words.append(f"the compressed model's file has the sha256 {compression.artefact_sha256}")
    return words


def segments_table(plan: Plan) -> Table:
    """One line per segment; its id is the one that `hetrl measure` uses."""
    table = grid("id", ">operators", "first", "last", "processors", "split along", "memory")
    for index, segment in enumerate(plan.segments):
        cells = [
            f"s{index}",
            str(len(segment.nodes)),
            segment.nodes[0],
            segment.nodes[-1],
            shares(segment),
            segment.axis.value.replace("_", " ") if len(segment.parts) > 1 else NOTHING,
            segment.memory.value if segment.memory else NOTHING,
        ]
        table.add_row(*map(Text, cells))
    return table


def shares(segment: Segment) -> str:
    """`gpu/mace/fp32 70 %, cpu/mace/fp32 30 %`."""
    if len(segment.parts) == 1:
        return segment.parts[0].processor
    return ", ".join(f"{part.processor} {part.share_pct} %" for part in segment.parts)


def row_bound_line(row: Row) -> str:
    """The certificate of a row that was measured alone."""
    gap_to_exact = row.gap_to_exact
    bound_ms = None if gap_to_exact is None or row.latency_ms is None else row.latency_ms / (1 + gap_to_exact)
    return bound_line(gap_to_exact, bound_ms, row.evidence, "`hetrl compare` looks for a bound")


def plan_lines(plan: Plan) -> list[str]:
    """What `plan show` says below the segments."""
    lines = [
        "",
        f"model      {plan.model.name} (structure {plan.model.structure_sha256[:12]})",
        f"device     {plan.device}, engine {', '.join(plan.engines)}",
        f"does       {plan_words(plan)}",
    ]
    if plan.expected is not None:
        told = plan.expected
        lines.append(
            f"expected   {number(told.latency_ms, 'ms')} ({told.evidence.value}) when {told.condition}, "
            f"{number(told.peak_memory_mb, 'MB')}, {number(told.energy_mj, 'mJ')}, "
            f"frame drops {percent(told.frame_drop_rate)}, accuracy drop {told.accuracy_drop_pct:.2f} points"
        )
        lines.append(bound_line(told.gap, told.bound_ms, told.evidence, "its maker knew no bound"))
    else:
        lines.append("bound      no certificate: the plan does not say what its maker saw")
    if plan.made_by is not None:
        made = plan.made_by
        by = [made.method, made.search, None if made.seed is None else f"seed {made.seed}"]
        lines.append(f"made by    {', '.join(part for part in by if part)}")
    lines.append(f"key        {plan.key}")
    return lines


def timeline_table(segments: Sequence[SegmentTiming]) -> Table:
    """When each segment ran."""
    table = grid("segment", "processors", ">start", ">end", ">transfers")
    for segment in segments:
        times = (f"{ms:.3f} ms" for ms in (segment.start_ms, segment.end_ms, segment.transfer_ms))
        table.add_row(*map(Text, (segment.id, ", ".join(segment.processors), *times)))
    return table


def fallbacks_table(fallbacks: Sequence[Fallback]) -> Table:
    """Which operators did not run where the plan put them."""
    table = grid("fallback of", "why", ">cost")
    for fallback in fallbacks:
        table.add_row(*map(Text, (fallback.node, fallback.reason, f"{fallback.cost_ms:.3f} ms")))
    return table
