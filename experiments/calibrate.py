"""Refit the `mace` engine set of d1 from the measured rows that hetrl ships.

python experiments/calibrate.py            print the errors, in sample and leave-one-model-out
python experiments/calibrate.py --write    also write hetrl/device_bridge/specs/d1.json and docs/calibration.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hetrl.calibration.fit import MODELS
from hetrl.calibration.predict import STRATEGIES, CellError, by_strategy, errors, fit_all, leave_one_model_out, mean_abs
from hetrl.calibration.rows import cells
from hetrl.calibration.spec_file import d1_spec, encode_spec

ROOT = Path(__file__).resolve().parent.parent


def table(title: str, rows: list[CellError]) -> list[str]:
    """Markdown: one line a network, one column a strategy; predicted ms, measured ms, error."""
    lines = [f"## {title}", "", "| network | " + " | ".join(STRATEGIES) + " |", "|---" * (1 + len(STRATEGIES)) + "|"]
    for model in MODELS:
        found = {r.cell.strategy: r for r in rows if r.cell.model == model}
        if found:
            lines.append(f"| {model} | " + " | ".join(_cell(found.get(s)) for s in STRATEGIES) + " |")
    means = by_strategy(rows)
    lines.append(
        "| mean abs. error | " + " | ".join(f"{100 * means[s]:.1f} %" if s in means else "" for s in STRATEGIES) + " |"
    )
    without = mean_abs([r for r in rows if r.cell.strategy != "codl_buffer"])
    lines += ["", f"All cells: {100 * mean_abs(rows):.2f} %; without `codl_buffer`: {100 * without:.2f} %.", ""]
    return lines


def _cell(row: CellError | None) -> str:
    return f"{row.predicted_ms:.0f} of {row.cell.latency_ms:.0f} ({100 * row.error:+.1f} %)" if row else "no data"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--write", action="store_true", help="write the device file and docs/calibration.md")
    write = arguments.parse_args().write
    fit = fit_all(cells())
    held_out = leave_one_model_out()
    mine = [c for c in cells() if c.device == "d1"]
    lines = [
        "# How wrong the surrogate of d1 is",
        "",
        "Made by `python experiments/calibrate.py --write` from `hetrl/data`. Predicted of measured milliseconds.",
        "The rows are those of CoDL (MobiSys'22) on a Xiaomi 9; figures read off bars carry 2 to 4 ms themselves. They",
        "are evaluated as listed; the zoo's networks have the same operators, and differ by glue and greedy chains.",
        "",
        *table("d1, in sample", errors(fit, mine)),
        *table("d1, leave one model out", [r for r in held_out if r.cell.device == "d1"]),
        *table("Four phones, leave one model out, d3", [r for r in held_out if r.cell.device == "d3"]),
        *table("Four phones, leave one model out, d4", [r for r in held_out if r.cell.device == "d4"]),
        *table("Four phones, leave one model out, d5", [r for r in held_out if r.cell.device == "d5"]),
        "## Leave one model out, all phones",
        "",
        "| strategy | mean abs. error |",
        "|---|---|",
        *(f"| {s} | {100 * e:.1f} % |" for s, e in by_strategy(held_out).items()),
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if write:
        (ROOT / "docs" / "calibration.md").write_text(text, encoding="utf-8")
        (ROOT / "hetrl" / "device_bridge" / "specs" / "d1.json").write_bytes(encode_spec(d1_spec(fit)))


if __name__ == "__main__":
    main()
