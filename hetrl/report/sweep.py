"""A sweep as CSV, as markdown and as a heat map: who wins where, and by how much."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from hetrl.errors import MissingExtra
from hetrl.report.comparison import verdict
from hetrl.report.tables import NOTHING, certificate, grid, number, percent
from hetrl.results import best_hand, best_single, fastest_hands

if TYPE_CHECKING:
    from hetrl.results import Comparison, Pair, Row, Sweep

HEADER = (
    "device", "model", "engine", "condition", "policy", "winner", "latency_ms", "latency_low_ms", "latency_high_ms",
    "speedup_over_single", "gap_to_exact", "accuracy_drop_pct", "frame_drop_rate", "peak_memory_mb", "model_size_mb",
    "energy_mj", "fallback_ratio", "processors", "utilization", "keeps_budgets", "evidence", "error",
)  # fmt: skip
DARKEST = 2.5  # speed-up with the darkest colour; pictures of several sweeps compare


def write_sweep(sweep: Sweep, folder: Path) -> list[Path]:
    """Write `sweep.csv` and `sweep.md`, and `heatmap.png` beside them where it can be drawn; their paths.

    :raises MissingExtra: after the other two are written, if matplotlib is not installed.
    """
    texts = {"sweep.csv": sweep_csv(sweep), "sweep.md": sweep_markdown(sweep)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    written = [folder / name for name in texts]
    if any(pair.comparison is not None and pair.comparison.best is not None for pair in sweep.pairs):
        draw_heatmap(sweep, folder / "heatmap.png")
        written.append(folder / "heatmap.png")
    return written


def sweep_csv(sweep: Sweep) -> str:
    """One line per device, model and policy; a pair that failed has one line with its error."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    for pair in sweep.pairs:
        found = pair.comparison
        if found is None:
            blank = [None] * (len(HEADER) - 5)
            writer.writerow([pair.device, pair.model, sweep.engine, sweep.condition, *blank, pair.error])
            continue
        for row in found.rows:
            where = (pair.device, pair.model, found.engine, found.condition)
            writer.writerow([*where, row.policy, row.policy == found.winner, *_numbers(row)])
    return out.getvalue()


def _numbers(row: Row) -> list[object]:
    low, high = row.latency_interval_ms or (None, None)
    return [
        row.latency_ms, low, high, row.speedup_over_single, row.gap_to_exact, row.accuracy_drop_pct,
        row.frame_drop_rate, row.peak_memory_mb, row.model_size_mb, row.energy_mj, row.fallback_ratio,
        "+".join(row.processors), " ".join(f"{p}={busy:.4f}" for p, busy in row.utilization.items()),
        row.keeps_budgets, row.evidence.value, row.error,
    ]  # fmt: skip


def sweep_markdown(sweep: Sweep) -> str:
    """The winners as a table of models and devices, then counts and means, then what failed."""
    engine = f"engine set `{sweep.engine}`" if sweep.engine else "each device's default engine set"
    return "\n".join([
        "# Who wins where",
        "",
        f"{engine[0].upper()}{engine[1:]}, `{sweep.condition}`. Latencies in ms are {evidence_words(sweep)}.",
        "A cell names the fastest hand policy that keeps the budgets and its latency, then the best plan of all: its",
        "latency, its certificate, and how many times as fast as the best single processor it is.",
        "",
        *winners_table(sweep),
        "",
        *summary(sweep),
        *_failures(sweep),
    ])  # fmt: skip


def evidence_words(sweep: Sweep) -> str:
    """`calibrated (120 rows) or predicted (40 rows)`."""
    counts = Counter(row.evidence.value for found in _found(sweep.pairs) for row in found.rows)
    return " or ".join(f"{word} ({n} rows)" for word, n in sorted(counts.items())) or "not known"


def winners_table(sweep: Sweep) -> list[str]:
    """Markdown: one line per model, one column per device."""
    devices, cells = _cells(sweep)
    lines = ["| model | " + " | ".join(devices) + " |", "|---" * (1 + len(devices)) + "|"]
    return lines + ["| " + " | ".join([model, *row]) + " |" for model, row in cells.items()]


def sweep_table(sweep: Sweep) -> Table:
    """The best plans' speed-ups over the best single processor, one line per model."""
    devices = list(dict.fromkeys(pair.device for pair in sweep.pairs))
    at = {(pair.device, pair.model): pair for pair in sweep.pairs}
    table = grid("best plan vs best single", *(f">{device}" for device in devices))
    for model in dict.fromkeys(pair.model for pair in sweep.pairs):
        cells = [speedup_words(at[device, model]) if (device, model) in at else NOTHING for device in devices]
        table.add_row(*map(Text, (model, *cells)))
    return table


def speedup_words(pair: Pair) -> str:
    """`1.57x`, or why there is none."""
    if pair.comparison is None:
        return "failed"
    best = pair.comparison.best
    if best is None:
        return "no plan"
    return number(best.latency_ms, "ms") if best.speedup_over_single is None else f"{best.speedup_over_single:.2f}x"


def pair_words(pair: Pair) -> str:
    """One pair in a few words: the winner, its latency and certificate, its speed-up; or what went wrong."""
    if pair.comparison is None:
        return f"failed ({pair.error})"
    best = pair.comparison.best
    if best is None:
        return f"failed ({pair.comparison.infeasible})"
    return f"{best.policy} {number(best.latency_ms, 'ms')} ({verdict(best)}), {speedup_words(pair)}"


def _cells(sweep: Sweep) -> tuple[list[str], dict[str, list[str]]]:
    """Devices, and each model's cells."""
    devices = list(dict.fromkeys(pair.device for pair in sweep.pairs))
    at = {(pair.device, pair.model): pair for pair in sweep.pairs}
    models = dict.fromkeys(pair.model for pair in sweep.pairs)
    return devices, {model: [_cell(at.get((device, model))) for device in devices] for model in models}


def _cell(pair: Pair | None) -> str:
    if pair is None:
        return NOTHING
    best = pair.comparison.best if pair.comparison is not None else None
    if pair.comparison is None or best is None:
        return speedup_words(pair)
    hand = best_hand(pair.comparison.rows)
    words = [f"{hand.policy} {number(hand.latency_ms)};"] if hand is not None else []
    words += [number(best.latency_ms), f"({verdict(best)})"]
    if best.speedup_over_single is not None:
        words.append(speedup_words(pair))
    return " ".join(words)


def summary(sweep: Sweep) -> list[str]:
    """Markdown: how often each hand policy is the fastest, and what the best plans gain."""
    found = _solved(sweep)
    wins = Counter(hand.policy for one in found for hand in fastest_hands(one.rows))
    policies = {row.policy for one in found for row in one.rows} - {"exact", "learned"}
    lines = ["| hand policy | as fast as the fastest on |", "|---|---|"]
    lines += [f"| {name} | {wins[name]} of {len(found)} |" for name in sorted(policies, key=lambda n: (-wins[n], n))]
    return [*lines, "", *means(sweep), ""]


def means(sweep: Sweep) -> list[str]:
    """What the best plans gain, and how many are proven."""
    found = _solved(sweep)
    over_hand = [_ratio(best_hand(one.rows), one.best) for one in found]
    over_single = [_ratio(best_single(one.rows), one.best) for one in found]
    if not found:
        return ["No pair has a plan that keeps the budgets."]
    lines = [
        f"Geometric means over {len(found)} pairs: the best plan is {_mean(over_hand)} times as fast as the best hand "
        f"policy, and {_mean(over_single)} times as fast as the best single processor."
    ]
    gaps = [one.best.gap_to_exact for one in found if one.best is not None and one.best.gap_to_exact is not None]
    if gaps:
        proven = sum(certificate(gap) == "optimal" for gap in gaps)
        lines.append(
            f"Proven optimal in the search space: {proven} of {len(gaps)}; the largest gap to a proven bound is "
            f"{percent(max(0.0, *gaps))}."
        )
    return lines


def summary_lines(sweep: Sweep) -> list[str]:
    """What a terminal shows below the table."""
    return ["", *means(sweep), *(f"Latencies are {evidence_words(sweep)}." for _ in sweep.pairs[:1]), *_failed(sweep)]


def _solved(sweep: Sweep) -> list[Comparison]:
    return [one for one in _found(sweep.pairs) if one.best is not None]


def _failures(sweep: Sweep) -> list[str]:
    lines = [f"- {line}" for line in _failed(sweep)]
    return ["## Without a plan", "", *lines, ""] if lines else []


def _failed(sweep: Sweep) -> list[str]:
    reasons = ((p, p.error or (p.comparison.infeasible if p.comparison else None)) for p in sweep.pairs)
    return [f"{pair.device}, {pair.model}: {reason}" for pair, reason in reasons if reason is not None]


def _found(pairs: Sequence[Pair]) -> list[Comparison]:
    return [pair.comparison for pair in pairs if pair.comparison is not None]


def _ratio(slower: Row | None, best: Row | None) -> float | None:
    """How many times as fast the best is."""
    if slower is None or best is None or slower.latency_ms is None or not best.latency_ms:
        return None
    return slower.latency_ms / best.latency_ms


def _mean(ratios: Sequence[float | None]) -> str:
    """The geometric mean."""
    known = [math.log(ratio) for ratio in ratios if ratio is not None]
    return f"{math.exp(math.fsum(known) / len(known)):.2f}" if known else NOTHING


def draw_heatmap(sweep: Sweep, path: Path) -> None:
    """The best plan's speed-up over the best single processor, with the fastest hand policy in each cell.

    :raises MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("drawing a heat map", "plots") from None
    import numpy as np

    devices = list(dict.fromkeys(pair.device for pair in sweep.pairs))
    models = list(dict.fromkeys(pair.model for pair in sweep.pairs))
    speedups = np.full((len(models), len(devices)), np.nan)
    figure = Figure(figsize=(2.0 + 1.6 * len(devices), 1.4 + 0.5 * len(models)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for pair in sweep.pairs:
        place = models.index(pair.model), devices.index(pair.device)
        best = pair.comparison.best if pair.comparison is not None else None
        words = speedup_words(pair)
        if pair.comparison is not None and best is not None:
            hand = best_hand(pair.comparison.rows)
            speedups[place] = best.speedup_over_single or np.nan
            words += f"\n{hand.policy if hand else best.policy}"
        color = "white" if speedups[place] > 1.0 + 0.6 * (DARKEST - 1.0) else "black"
        axes.text(place[1], place[0], words, ha="center", va="center", fontsize=6.5, color=color)
    image = axes.imshow(speedups, cmap="Blues", aspect="auto", vmin=1.0, vmax=DARKEST)
    axes.set_xticks(range(len(devices)), devices)
    axes.set_yticks(range(len(models)), models)
    axes.set_title(f"{sweep.engine or 'default engines'}, {sweep.condition} ({evidence_words(sweep)})", fontsize=9)
    figure.colorbar(image, label="best plan over best single processor; text: fastest hand policy")
    figure.savefig(path, metadata={"Software": None})  # no version in it: the same sweep, the same bytes
