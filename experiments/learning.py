"""How well an agent learns by itself: no seeds, gap to the exact optimum against evaluations.

python experiments/learning.py                          d1, vgg16 and resnet18, seeds 0 1 2, 20,000 evaluations
python experiments/learning.py --budget 1000 --seeds 0  a quick look
python experiments/learning.py --write                  also write docs/learning.md
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from pathlib import Path

import hetrl

ROOT = Path(__file__).resolve().parent.parent
POINTS = (500, 1000, 2000, 5000, 10000, 20000)


def gaps(model: str, seed: int, budget: int, folder: Path) -> tuple[dict[int, float], float, int]:
    """Gap to exact (fraction) after each number of evaluations, wall time in s, and decisions taken."""
    begin = time.monotonic()
    result = hetrl.tune(model, "d1", agent="maskable-ppo", seeds=False, seed=seed, budget=budget, out=folder)
    wall_s = time.monotonic() - begin
    assert result.exact_ms is not None
    with (folder / "learning_curve.csv").open() as file:
        best = [float(row["best_latency_ms"]) for row in csv.DictReader(file)]
    gaps = {n: max(0.0, best[n - 1] / result.exact_ms - 1) for n in POINTS if n <= len(best)}  # the CSV has six digits
    return gaps, wall_s, result.env_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vgg16", "resnet18"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--budget", type=int, default=20000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    points = [n for n in POINTS if n <= options.budget]
    lines = [
        "# Learning by itself",
        "",
        "Made by `python experiments/learning.py --write`. MaskablePPO on d1 without seeds: how far (percent) the best",
        "plan so far is from the proven optimum, after so many evaluations (distinct plans measured). The settings are",
        f"those for a budget of {options.budget:,}: from 20,000 on those for large budgets, whose speed is in",
        "docs/bench_env.md.",
        "",
        "| model | seed | " + " | ".join(f"{n:,}" for n in points) + " | decisions | wall s |",
        "|---" * (len(points) + 4) + "|",
    ]
    print("\n".join(lines))
    for model in options.models:
        found = []
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as folder:
                gap, wall_s, steps = gaps(model, seed, options.budget, Path(folder) / "run")
            found.append(gap)
            cells = " | ".join(f"{100 * gap[n]:.1f}" if n in gap else "" for n in points)
            lines.append(f"| {model} | {seed} | {cells} | {steps:,} | {wall_s:.0f} |")
            print(lines[-1], flush=True)
        medians = " | ".join(
            f"**{100 * statistics.median(g[n] for g in found):.1f}**" if all(n in g for g in found) else ""
            for n in points
        )
        lines.append(f"| {model} | median | {medians} | | |")
        print(lines[-1], flush=True)
    if options.write:
        (ROOT / "docs" / "learning.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
