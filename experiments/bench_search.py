"""Agents and searches at equal budget: how far from the best known plan after so many evaluations, without seeds.

python experiments/bench_search.py                     all contestants, d1, four networks, five seeds, 5,000 evaluations
python experiments/bench_search.py --only auto tpe     some of them
python experiments/bench_search.py --write             also write docs/bench_search.md, .json and .png

What is done is kept in runs/bench_search: the same command goes on where it was stopped. A run that has reached the
proven optimum ends there: it has nothing left to find.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch_graphs

import hetrl
from hetrl.agents.base import Kind
from hetrl.agents.settings import configured, find_method
from hetrl.progress import Silent

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "bench_search"
DEVICE = "d1"
MODELS = ("vgg16", "resnet18", "mobile", "branchy")
POINTS = (50, 100, 200, 500, 1000, 5000)
SEEDS = (0, 1, 2, 3, 4)
TIE_PCT = 0.05
SHORT, LONG = 1000, 5000  # evaluations; both are run where what suits a budget depends on it
PROVEN = 1 + 1e-6  # the curve's file has six digits


@dataclass(frozen=True)
class Contestant:
    """An agent or a sampler with its settings; `most` evaluations where more would take it hours."""

    label: str
    method: str
    learns: bool
    settings: tuple[tuple[str, str], ...] = ()
    most: int = LONG


CONTESTANTS = (
    Contestant("auto", "auto", True),
    Contestant("maskable-ppo", "maskable-ppo", True),
    Contestant("ppo", "ppo", True),
    Contestant("a2c", "a2c", True),
    Contestant("dqn", "dqn", True),
    Contestant("tpe", "tpe", False),
    Contestant("tpe, per layer", "tpe", False, (("encoding", "layers"),)),
    Contestant("nsga2", "nsga2", False),
    Contestant("cmaes", "cmaes", False),
    Contestant("gp", "gp", False, most=100),
    Contestant("annealing", "annealing", False),
    Contestant("beam", "beam", False),
    Contestant("random", "random", False),
)


@dataclass(frozen=True)
class Outcome:
    """One run: best latency (ms) after each number of evaluations, by its text; wall time in s."""

    contestant: str
    model: str
    seed: int
    budget: int
    best_ms: dict[str, float]
    evaluations: int
    exact_ms: float | None
    bound_ms: float | None
    wall_s: float


class UntilOptimal(Silent):
    """Ends a run, as Ctrl-C would, once it is at the proven optimum (ms)."""

    def __init__(self, optimum_ms: float | None) -> None:
        self._enough_ms = 0.0 if optimum_ms is None else optimum_ms * PROVEN

    def update(self, done: int, best_ms: float | None) -> None:
        if best_ms is not None and best_ms <= self._enough_ms:
            raise KeyboardInterrupt


@cache
def optimum_ms(source: str) -> float | None:
    """The proven optimum of a network, None where there is no proof."""
    row = hetrl.measure(source, DEVICE, policy="exact")
    return row.latency_ms if row.gap_to_exact is not None and row.gap_to_exact < PROVEN - 1 else None


@cache
def prefix(contestant: Contestant) -> bool:
    """Whether its short run is the beginning of its long one: the settings for both are the same."""
    kind = Kind.AGENT if contestant.learns else Kind.SAMPLER
    method, known = find_method(kind, contestant.method), dict(contestant.settings)
    short, long = (configured(method, contestant.method, budget, known) for budget in (SHORT, LONG))
    return short == long


def budgets(contestant: Contestant, long: bool) -> list[int]:
    """Those of its runs with one seed."""
    if contestant.most < LONG:
        return [contestant.most]
    if not long:
        return [SHORT]
    return [LONG] if prefix(contestant) else [SHORT, LONG]


def run(contestant: Contestant, model: str, seed: int, budget: int) -> Outcome:
    """Let one contestant tune one network, and read its learning curve."""
    source = str(torch_graphs.exported(model, RUNS / "models")) if model in torch_graphs.NETWORKS else model
    enough = UntilOptimal(optimum_ms(source))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        known = dict(contestant.settings)
        if contestant.learns:
            found = hetrl.tune(
                source, DEVICE, agent=contestant.method, settings=known, budget=budget, seed=seed,
                seeds=False, out=out, progress=enough,
            )  # fmt: skip
        else:
            found = hetrl.search(
                source, DEVICE, sampler=contestant.method, settings=known, budget=budget, seed=seed,
                seeds=False, out=out, progress=enough,
            )  # fmt: skip
        with (out / "learning_curve.csv").open() as file:
            best = [float(row["best_latency_ms"]) for row in csv.DictReader(file)]
    # One that ran out of new plans before its budget has found all that it will.
    points = [n for n in POINTS if n <= budget and (n > SHORT or budget < LONG or prefix(contestant))]
    marks = {str(n): best[min(n, len(best)) - 1] for n in points}
    wall_s = time.monotonic() - begin
    return Outcome(contestant.label, model, seed, budget, marks, len(best), found.exact_ms, found.bound_ms, wall_s)


def all_outcomes(contestants: Sequence[Contestant], options: argparse.Namespace) -> None:
    """Run what is not done yet."""
    models = options.models
    for model in models:
        if model in torch_graphs.NETWORKS:
            torch_graphs.exported(model, RUNS / "models")
    RUNS.mkdir(parents=True, exist_ok=True)
    todo = [
        (contestant, model, seed, budget)
        for seed in options.seeds
        for model in models
        for contestant in contestants
        for budget in budgets(contestant, seed < options.long_seeds)
    ]
    todo = [one for one in todo if not _file(one[0].label, *one[1:]).exists()]
    with ProcessPoolExecutor(options.jobs) as pool:
        waiting = {pool.submit(run, *one): one for one in todo}
        for number, done in enumerate(as_completed(waiting), 1):
            outcome = done.result()
            path = _file(outcome.contestant, outcome.model, outcome.seed, outcome.budget)
            path.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
            told = f"{outcome.contestant} {outcome.model} seed {outcome.seed} of {outcome.budget}"
            print(f"{number}/{len(todo)} {told}: {outcome.wall_s:.0f} s", flush=True)


def _file(label: str, model: str, seed: int, budget: int) -> Path:
    return RUNS / f"{label.replace(', ', '-').replace(' ', '-')}_{model}_{seed}_{budget}.json"


def gaps(outcomes: Sequence[Outcome]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """model -> contestant -> number of evaluations -> one gap (fraction) per seed, to the best plan that is known."""
    done = {o.model for o in outcomes}
    best = {m: min([o.best_ms[max(o.best_ms, key=int)] for o in outcomes if o.model == m]) for m in done}
    for outcome in outcomes:
        if outcome.exact_ms is not None:
            best[outcome.model] = min(best[outcome.model], outcome.exact_ms)
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for o in outcomes:
        for n, latency_ms in o.best_ms.items():
            cell = table.setdefault(o.model, {}).setdefault(o.contestant, {}).setdefault(n, [])
            cell.append(max(0.0, latency_ms / best[o.model] - 1))  # the curve's file has six digits
    return table


def load(labels: Sequence[str]) -> list[Outcome]:
    """Everything that is done of these contestants."""
    found = [Outcome(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(RUNS.glob("*.json"))]
    found = [o for o in found if o.contestant in labels and o.seed in SEEDS]
    prefixes = {c.label for c in CONTESTANTS if c.most == LONG and prefix(c)}
    longer = {(o.contestant, o.model, o.seed) for o in found if o.budget == LONG and o.contestant in prefixes}
    return [o for o in found if o.budget != SHORT or (o.contestant, o.model, o.seed) not in longer]


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The document."""
    table = gaps(outcomes)
    labels = [c.label for c in CONTESTANTS if any(c.label in of for of in table.values())]
    lines = [
        "# Agents and searches at equal budget",
        "",
        f"Made by `python experiments/bench_search.py --write`. Surrogate of {DEVICE}, cold, no seeds: the first",
        "evaluation is the whole model on the CPU, then each method is on its own. A cell is the gap in percent",
        "between the best plan so far and the best known one (the proven optimum, where there is a proof): median",
        f"over {len(SEEDS)} seeds, and from least to most. Where a method's settings depend on the budget (annealing",
        f"cools to its end), a run of {SHORT:,} evaluations counts up to there, and one of {LONG:,} behind. A run ends",
        "at the proven optimum. TPE looks back at no more trials than its setting `memory` says.",
        "",
        "`auto` and `beam` ask the surrogate for a ranking before they measure, and here the surrogate *is* the",
        "device, so their ranking is never wrong: on a phone it would be.",
        "",
    ]
    for model in (m for m in MODELS if m in table):
        proven = next((o.exact_ms for o in outcomes if o.model == model), None)
        lines += [f"## {model}" + ("" if proven else " (no proven optimum)"), ""]
        lines += [
            "| method | " + " | ".join(f"{n:,}" for n in POINTS) + " |",
            "|---" * (len(POINTS) + 1) + "|",
        ]
        for label in labels:
            cells = []
            for n in POINTS:
                values = [100 * g for g in table[model].get(label, {}).get(str(n), [])]
                spread = f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})" if values else ""
                seeds = f"{len(values)} seed" + "s" * (len(values) > 1)
                spread += f", {seeds}" if 0 < len(values) < len(SEEDS) else ""
                cells.append(spread)
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        lines.append("")
    missing = [m for m in MODELS if m not in table]
    if missing:
        lines += [f"Not run yet: {', '.join(missing)}.", ""]
    lines += ["## All networks above", "", *summary(table, labels), ""]
    return "\n".join(lines)


def summary(table: dict[str, dict[str, dict[str, list[float]]]], labels: Sequence[str]) -> list[str]:
    """Mean over the networks of each method's median gap, and who is best."""
    lines = ["| method | " + " | ".join(f"{n:,}" for n in POINTS) + " |", "|---" * (len(POINTS) + 1) + "|"]
    means: dict[tuple[str, int], float] = {}
    for label in labels:
        for n in POINTS:
            medians = [statistics.median(of[label][str(n)]) for of in table.values() if str(n) in of.get(label, {})]
            if len(medians) == len(table):
                means[label, n] = 100 * statistics.mean(medians)
        cells = [f"{means[label, n]:.1f}" if (label, n) in means else "" for n in POINTS]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    for n in POINTS:
        at = {label: value for (label, points), value in means.items() if points == n}
        if at:
            first = [label for label, value in at.items() if value < min(at.values()) + TIE_PCT]
            lines += ["", f"Best after {n:,}: {', '.join(first)}."]
    return lines


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Median gap against evaluations, one panel per network."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    table = gaps(outcomes)
    figure, axes = plt.subplots(1, len(table), figsize=(4 * len(table), 4), squeeze=False, sharey=True)
    for axis, (model, methods) in zip(axes[0], table.items(), strict=True):
        axis.set_prop_cycle(color=plt.get_cmap("tab20").colors)
        for label in (c.label for c in CONTESTANTS if c.label in methods):
            cells = methods[label]
            at = sorted(int(n) for n in cells)
            axis.plot(at, [max(100 * statistics.median(cells[str(n)]), 0.01) for n in at], marker=".", label=label)
        axis.set(xscale="log", yscale="log", xlabel="evaluations", title=model)
    axes[0][0].set_ylabel("median gap to the best known plan, %")
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="labels of the contestants to run")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--long-seeds", type=int, default=len(SEEDS), help="seeds that also run 5,000 evaluations")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    wanted = [c for c in CONTESTANTS if options.only is None or c.label in options.only]
    all_outcomes(wanted, options)
    outcomes = load([c.label for c in CONTESTANTS])
    text = markdown(outcomes)
    print(text)
    if options.write:
        (ROOT / "docs" / "bench_search.md").write_text(text, encoding="utf-8")
        rows = sorted((asdict(o) for o in outcomes), key=lambda o: (o["model"], o["contestant"], o["seed"]))
        (ROOT / "docs" / "bench_search.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        plot(outcomes, ROOT / "docs" / "bench_search.png")


if __name__ == "__main__":
    main()
