"""All built-in models on all built-in phones: who wins where, and does training ever fail or end worse than its seeds.

python experiments/pairs.py                         compare all pairs, cold
python experiments/pairs.py --train 60              also train each, 60 evaluations
python experiments/pairs.py --condition sigma2      under another condition
python experiments/pairs.py --train 60 --write      write docs/pairs.md (and docs/pairs.json)

What is done is kept in runs/pairs-CONDITION: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import hetrl
from hetrl.cli.compare_all import document, tell
from hetrl.report.sweep import sweep_markdown
from hetrl.results import Comparison, best_hand

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ("d1", "d3", "d4", "d5")  # the phones whose `mace` numbers are fitted to their own rows
CLOSE = 1e-9  # of a latency: sums taken in another order


def worse_than_seeds(found: Comparison) -> bool:
    """Whether training ended above the best hand policy or the exact plan."""
    learned, exact, hand = found.row("learned"), found.row("exact"), best_hand(found.rows)
    seeds = [row.latency_ms for row in (exact, hand) if row is not None and row.keeps_budgets and row.latency_ms]
    if learned is None or learned.latency_ms is None:
        return True
    return bool(seeds) and learned.latency_ms > min(seeds) * (1 + CLOSE)


def training(pairs: Sequence[hetrl.Pair], budget: int) -> list[str]:
    """Markdown: how often training failed, and how far from proven bounds it ended."""
    found = [pair.comparison for pair in pairs if pair.comparison is not None]
    worse = sum(worse_than_seeds(one) for one in found)
    gaps = [row.gap_to_exact for one in found if (row := one.row("learned")) and row.gap_to_exact is not None]
    lines = [
        "## Training",
        "",
        f"{budget} evaluations each. Training failed on {len(pairs) - len(found)} of {len(pairs)} pairs, and ended "
        f"worse than its seeds on {worse}.",
    ]
    if gaps:
        lines.append(
            f"Mean gap to the proven bound {100 * sum(gaps) / len(gaps):.2f} %, largest {100 * max(gaps):.2f} %."
        )
    return [*lines, ""]


def shipped(mace: hetrl.Sweep, ncnn: hetrl.Sweep) -> list[str]:
    """Markdown: the study's best co-execution beside what an app would ship today."""
    best = {(p.device, p.model): hand for p in mace.pairs if p.comparison and (hand := best_hand(p.comparison.rows))}
    rows = [p for p in ncnn.pairs if p.comparison and (p.device, p.model) in best]
    devices, models = (list(dict.fromkeys(names)) for names in ([p.device for p in rows], [p.model for p in rows]))
    cells, faster = {}, 0
    for pair in rows:
        assert pair.comparison is not None
        ours = best_hand(pair.comparison.rows)
        theirs = best[pair.device, pair.model]
        if ours is None:
            continue
        faster += ours.latency_ms < theirs.latency_ms
        cells[pair.model, pair.device] = f"{theirs.latency_ms:.0f}, {ours.policy} {ours.latency_ms:.0f}"
    return [
        "## What an app would ship today",
        "",
        f"Of {len(cells)} pairs, a plain ncnn run (fp16 on the CPU, or Vulkan) is faster than the best strategy of the",
        f"study's fp32 MACE on {faster}. A cell holds the latter's latency in ms, then ncnn's better processor and its",
        "latency.",
        "",
        "| model | " + " | ".join(devices) + " |",
        "|---" * (1 + len(devices)) + "|",
        *(f"| {m} | " + " | ".join(cells.get((m, d), "") for d in devices) + " |" for m in models),
        "",
    ]


def report(swept: hetrl.Sweep, budget: int | None) -> str:
    """docs/pairs.md."""
    words = f" --train {budget}" if budget else ""
    title, _, rest = sweep_markdown(swept).partition("\n\n")
    made = f"Made by `python experiments/pairs.py{words} --condition {swept.condition} --write`. Nothing is measured."
    return "\n".join([title, "", made, rest, *(training(swept.pairs, budget) if budget else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--condition", default="cold")
    parser.add_argument("--train", type=int, metavar="BUDGET")
    parser.add_argument("--devices", nargs="+")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--out", type=Path, help="runs/pairs-CONDITION")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    trained = f"-train{asked.train}" if asked.train else ""
    out = asked.out or ROOT / "runs" / f"pairs-{asked.condition}{trained}".replace(":", "_")
    swept = hetrl.sweep(
        asked.devices,
        asked.models,
        out=out,
        jobs=asked.jobs,
        condition=asked.condition,
        train=asked.train is not None,
        budget=asked.train or 1,
        watch=tell,
    )
    text = report(swept, asked.train)
    if not swept.interrupted:
        phones = [name for name in MEASURED if asked.devices is None or name in asked.devices]
        ncnn = hetrl.sweep(
            phones, asked.models, out=out.with_name(f"{out.name}-ncnn"), jobs=asked.jobs, engine="ncnn",
            condition=asked.condition, watch=tell,
        )  # fmt: skip
        text = "\n".join([text.rstrip(), "", *shipped(swept, ncnn)])
    print(text)
    if swept.interrupted:
        sys.exit(130)
    if asked.write:
        (ROOT / "docs" / "pairs.md").write_text(text, encoding="utf-8")
        found = document(swept, Path("runs"), [])["pairs"]
        (ROOT / "docs" / "pairs.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
