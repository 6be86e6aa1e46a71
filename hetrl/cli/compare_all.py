"""`hetrl compare --all`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hetrl.cli import output
from hetrl.errors import Infeasible, MissingExtra

if TYPE_CHECKING:
    from hetrl.results import Pair, Sweep

FOLDER = Path("runs") / "sweep"


def compare_all(
    devices: str | None,
    models: str | None,
    out: Path | None,
    jobs: int | None,
    asked: dict[str, Any],
    *,
    json: bool,
    quiet: bool,
) -> None:
    """Compare all pairs, write the files, and say what is in them.

    :param devices: names with commas between them, None for all; `models` likewise.
    :param asked: what `hetrl.sweep` takes besides.
    """
    from hetrl.api import sweep
    from hetrl.report.sweep import write_sweep

    folder = out or FOLDER
    found = sweep(_names(devices), _names(models), out=folder, jobs=jobs, watch=None if quiet else tell, **asked)
    note = ""
    try:
        write_sweep(found, folder)
    except MissingExtra as error:
        note = f"no heatmap.png: {error}"
        print(note, file=sys.stderr)
    files = [folder / name for name in ("pairs.jsonl", "sweep.csv", "sweep.md", "heatmap.png")]
    written = [str(file) for file in files if file.exists() and not (note and file.suffix == ".png")]
    if json:
        output.print_json(document(found, folder, written))
    else:
        _show(found, written)
    if found.interrupted:
        raise typer.Exit(130)
    if not any(pair.comparison and pair.comparison.winner for pair in found.pairs):
        raise Infeasible(
            f"none of {len(found.pairs)} pairs has a plan that keeps the budgets", f"see {folder}/sweep.md"
        )


def _names(text: str | None) -> Sequence[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def tell(pair: Pair, done: int, total: int) -> None:
    """One line on stderr for a pair that is done."""
    from hetrl.report.sweep import pair_words

    print(f"{done}/{total} {pair.device} {pair.model}: {pair_words(pair)}, {pair.wall_s:.1f} s", file=sys.stderr)


def document(sweep: Sweep, folder: Path, files: Sequence[str]) -> dict[str, Any]:
    """What `--json` prints: the best plan of each pair; everything else is in the files."""
    from hetrl.results import best_hand

    pairs = []
    for pair in sweep.pairs:
        found, best = pair.comparison, pair.comparison.best if pair.comparison else None
        hand = best_hand(found.rows) if found else None
        pairs.append({
            "device": pair.device,
            "model": pair.model,
            "engine": found.engine if found else sweep.engine,
            "winner": found.winner if found else None,
            "latency_ms": best.latency_ms if best else None,
            "best_hand": {"policy": hand.policy, "latency_ms": hand.latency_ms} if hand else None,
            "exact_ms": found.exact_ms if found else None,
            "bound_ms": found.bound_ms if found else None,
            "gap_to_exact": best.gap_to_exact if best else None,
            "speedup_over_single": best.speedup_over_single if best else None,
            "evidence": best.evidence if best else None,
            "error": found.infeasible if found else pair.error,
        })  # fmt: skip
    return {
        "out": str(folder), "files": files, "condition": sweep.condition, "interrupted": sweep.interrupted,
        "pairs": pairs,
    }  # fmt: skip


def _show(sweep: Sweep, files: Sequence[str]) -> None:
    from hetrl.report.sweep import summary_lines, sweep_table

    output.show(f"{sweep.engine or 'default engines'}, {sweep.condition}", sweep_table(sweep), *summary_lines(sweep))
    output.show(f"files      {', '.join(files)}")
    if sweep.interrupted:
        output.show("           interrupted: the same command goes on")
