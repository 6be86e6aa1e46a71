"""All built-in models on all built-in phones: who wins where, and does training ever fail or end worse than its seeds.

python experiments/pairs.py                         compare all pairs, cold
python experiments/pairs.py --train 60              also train each, 60 evaluations
python experiments/pairs.py --condition sigma2      under another condition
python experiments/pairs.py --max-frame-drop 5      plans that drop at most 5 % of the frames
python experiments/pairs.py --train 60 --all-settings --write
                                                    cold, hot, beside competitors and under a frame limit; write
                                                    docs/pairs.md and docs/pairs.json

What is done is kept in runs/pairs-SETTING: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, geometric_mean

import hetrl
from hetrl.cli.compare_all import document, tell
from hetrl.objective import Objective
from hetrl.report.sweep import sweep_markdown
from hetrl.results import OPTIMAL_WITHIN, Comparison, Row, best_hand, best_single

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ("d1", "d3", "d4", "d5")  # the phones whose `mace` numbers are fitted to their own rows
CLOSE = 1e-9  # of a latency: sums taken in another order


@dataclass(frozen=True)
class Setting:
    """What all pairs are compared under; `max_frame_drop_pct` is None without a limit."""

    condition: str = "cold"
    max_frame_drop_pct: float | None = None

    def __str__(self) -> str:
        limit = self.max_frame_drop_pct
        return self.condition if limit is None else f"{self.condition}, frame drops at most {limit:g} %"

    @property
    def folder(self) -> str:
        limit = self.max_frame_drop_pct
        return self.condition.replace(":", "_") + ("" if limit is None else f"-drop{limit:g}")

    @property
    def objective(self) -> Objective:
        limit = self.max_frame_drop_pct
        return Objective(max_frame_drop_rate=None if limit is None else limit / 100)


ALL_SETTINGS = (Setting(), Setting("sigma2"), Setting("cold,competitors=2"), Setting("cold", 5.0))


def tuned(found: Comparison) -> Row | None:
    """What training ended with; without training the best plan of all."""
    return found.row("learned") or found.best


def slower(row: Row | None, others: Sequence[Row | None]) -> bool:
    """Whether a plan is slower than the fastest of some that keep the budgets; a plan that breaks them is."""
    kept = [other.latency_ms for other in others if other is not None and other.keeps_budgets and other.latency_ms]
    if row is None or row.latency_ms is None or not row.keeps_budgets:
        return True
    return bool(kept) and row.latency_ms > min(kept) * (1 + CLOSE)


@dataclass(frozen=True)
class Summary:
    """All pairs of one setting in numbers; gaps are those of the tuned plans, in percent."""

    setting: str
    pairs: int
    failed: int
    worse_than_hand: int
    worse_than_seeds: int
    over_hand: float | None
    over_single: float | None
    optimal: int
    mean_gap_pct: float | None
    largest_gap_pct: float | None

    @staticmethod
    def of(setting: Setting, pairs: Sequence[hetrl.Pair]) -> Summary:
        found = [pair.comparison for pair in pairs if pair.comparison is not None and pair.comparison.winner]
        gaps = [row.gap_to_exact for one in found if (row := tuned(one)) and row.gap_to_exact is not None]
        hands = [(best_hand(one.rows), tuned(one)) for one in found]
        singles = [(best_single(one.rows), tuned(one)) for one in found]
        return Summary(
            setting=str(setting),
            pairs=len(pairs),
            failed=len(pairs) - len(found),
            worse_than_hand=sum(slower(tuned(one), [best_hand(one.rows)]) for one in found),
            worse_than_seeds=sum(slower(tuned(one), [best_hand(one.rows), one.row("exact")]) for one in found),
            over_hand=mean_speedup(hands),
            over_single=mean_speedup(singles),
            optimal=sum(gap <= OPTIMAL_WITHIN for gap in gaps),
            mean_gap_pct=100 * fmean(gaps) if gaps else None,
            largest_gap_pct=100 * max(gaps) if gaps else None,
        )


def mean_speedup(plans: Sequence[tuple[Row | None, Row | None]]) -> float | None:
    """Geometric mean of how many times as fast the second ones are."""
    ratios = [a.latency_ms / b.latency_ms for a, b in plans if a and b and a.latency_ms and b.latency_ms]
    return geometric_mean(ratios) if ratios else None


def summary_table(summaries: Sequence[Summary], budget: int | None) -> list[str]:
    """Markdown: one line per setting."""
    what = f"plans trained with {budget} evaluations" if budget else "the best plans"

    def cell(value: float | None, unit: str = "") -> str:
        return "-" if value is None else f"{round(value, 2) + 0.0:.2f}{unit}"  # no -0.00

    return [
        f"How good {what} are: how many times as fast as the best hand policy and as the best single processor",
        "(geometric means), and how far above the proven bound. A pair without a plan that keeps the budgets has",
        "failed.",
        "",
        "| setting | pairs | failed | worse than the best hand policy | worse than a seed | over best hand policy "
        "| over best single | proven optimal | mean gap | largest gap |",
        "|---" * 10 + "|",
        *(
            f"| {s.setting} | {s.pairs} | {s.failed} | {s.worse_than_hand} | {s.worse_than_seeds} "
            f"| {cell(s.over_hand, 'x')} | {cell(s.over_single, 'x')} | {s.optimal} "
            f"| {cell(s.mean_gap_pct, ' %')} | {cell(s.largest_gap_pct, ' %')} |"
            for s in summaries
        ),
        "",
    ]


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
        if ours is None or ours.latency_ms is None or theirs.latency_ms is None:
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


def report(
    swept: Sequence[tuple[Setting, hetrl.Sweep]], ncnn: hetrl.Sweep | None, budget: int | None, command: str
) -> str:
    """docs/pairs.md: all settings in one table, then the first one pair by pair.

    :param ncnn: the first setting's hand plans with the engine set `ncnn`.
    """
    title, _, rest = sweep_markdown(swept[0][1]).partition("\n\n")
    summaries = [Summary.of(setting, sweep.pairs) for setting, sweep in swept]
    lines = [title, "", f"Made by `{command}`. Nothing is measured.", "", *summary_table(summaries, budget)]
    lines += [f"## {str(swept[0][0]).capitalize()}, pair by pair", "", rest.rstrip(), ""]
    return "\n".join([*lines, *(shipped(swept[0][1], ncnn) if ncnn is not None else [])])


def as_json(swept: Sequence[tuple[Setting, hetrl.Sweep]]) -> str:
    """docs/pairs.json."""
    found = [
        {
            "condition": setting.condition,
            "max_frame_drop_pct": setting.max_frame_drop_pct,
            "summary": asdict(Summary.of(setting, sweep.pairs)),
            "pairs": document(sweep, Path("runs"), [])["pairs"],
        }
        for setting, sweep in swept
    ]
    return json.dumps(found, indent=1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--condition", default="cold")
    parser.add_argument("--max-frame-drop", type=float, metavar="PCT")
    parser.add_argument("--all-settings", action="store_true")
    parser.add_argument("--train", type=int, metavar="BUDGET")
    parser.add_argument("--devices", nargs="+")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--out", type=Path, help="folder that holds a folder for each setting (runs)")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    one = Setting(asked.condition, asked.max_frame_drop)
    if asked.all_settings and one != Setting():
        parser.error("--all-settings chooses conditions and limits itself")
    trained = f"-train{asked.train}" if asked.train else ""

    def sweep(setting: Setting, engine: str | None = None, devices: list[str] | None = None) -> hetrl.Sweep:
        found = hetrl.sweep(
            devices or asked.devices,
            asked.models,
            out=(asked.out or ROOT / "runs") / f"pairs-{setting.folder}{trained}{f'-{engine}' if engine else ''}",
            jobs=asked.jobs,
            engine=engine,
            condition=setting.condition,
            objective=setting.objective,
            train=asked.train is not None and engine is None,
            budget=asked.train or 1,
            watch=tell,
        )
        if found.interrupted:
            sys.exit(130)
        return found

    swept = [(setting, sweep(setting)) for setting in (ALL_SETTINGS if asked.all_settings else (one,))]
    phones = [name for name in MEASURED if asked.devices is None or name in asked.devices]
    ncnn = sweep(swept[0][0], "ncnn", phones) if phones else None
    text = report(swept, ncnn, asked.train, shlex.join(["python", "experiments/pairs.py", *sys.argv[1:]]))
    print(text)
    if asked.write:
        (ROOT / "docs" / "pairs.md").write_text(text, encoding="utf-8")
        (ROOT / "docs" / "pairs.json").write_text(as_json(swept), encoding="utf-8")


if __name__ == "__main__":
    main()
