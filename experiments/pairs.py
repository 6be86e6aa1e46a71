"""All ten models on all eight phones: who wins where, and does training ever fail or end worse than its seeds.

python experiments/pairs.py                         compare all 80 pairs, cold
python experiments/pairs.py --train 60              also train each, 60 evaluations
python experiments/pairs.py --condition sigma2      under another condition
python experiments/pairs.py --train 60 --write      write docs/pairs.md (and docs/pairs.json) from cold phones
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import hetrl

ROOT = Path(__file__).resolve().parent.parent
PHONES = tuple(f"d{i}" for i in range(1, 9))
MODELS = (
    "yolov2", "vgg16", "posenet", "fst", "retinaface",
    "resnet18", "resnet34", "resnet50", "regnetx_1_6gf", "regnetx_4gf",
)  # fmt: skip
CLOSE = 1e-9  # of a latency: sums taken in another order


@dataclass(frozen=True)
class Pair:
    """What was found for one model on one phone; latencies in ms."""

    device: str
    model: str
    hand_ms: dict[str, float]
    intervals_ms: dict[str, tuple[float, float]]
    evidence: str
    exact_ms: float | None
    bound_ms: float | None
    tuned_ms: float | None
    wall_s: float

    @property
    def best_hand(self) -> str:
        """The fastest hand policy."""
        return min(self.hand_ms, key=lambda policy: self.hand_ms[policy])

    @property
    def best_single_ms(self) -> float:
        """The fastest hand policy on one processor."""
        return min(ms for policy, ms in self.hand_ms.items() if policy.startswith("mace_"))


@dataclass(frozen=True)
class Job:
    device: str
    model: str
    condition: str
    budget: int | None


def run(job: Job) -> Pair:
    """Compare, and train if there is a budget."""
    began = time.monotonic()
    tuned = None
    if job.budget is not None:
        tuned = hetrl.tune(job.model, job.device, condition=job.condition, budget=job.budget)
    found = hetrl.compare(job.model, job.device, condition=job.condition)
    hand = {r.policy: r for r in found.rows if r.policy != "exact" and r.latency_ms is not None}
    exact = next((r.latency_ms for r in found.rows if r.policy == "exact"), None)
    return Pair(
        device=job.device,
        model=job.model,
        hand_ms={name: row.latency_ms for name, row in hand.items() if row.latency_ms is not None},
        intervals_ms={name: row.latency_interval_ms for name, row in hand.items() if row.latency_interval_ms},
        evidence=next(iter(hand.values())).evidence.value,
        exact_ms=exact,
        bound_ms=tuned.bound_ms if tuned else None,
        tuned_ms=tuned.latency_ms if tuned else None,
        wall_s=time.monotonic() - began,
    )


def worse_than_seeds(pair: Pair) -> bool:
    """Whether training ended above the best hand policy or the exact plan."""
    known = [pair.hand_ms[pair.best_hand], *([pair.exact_ms] if pair.exact_ms is not None else [])]
    return pair.tuned_ms is not None and pair.tuned_ms > min(known) * (1 + CLOSE)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values))


def winners_table(pairs: Sequence[Pair]) -> list[str]:
    """Markdown: the fastest hand policy of each pair, how often each wins, and by how much it beats one processor."""
    found = {(p.device, p.model): p for p in pairs}
    devices = sorted({p.device for p in pairs})
    lines = ["| model | " + " | ".join(devices) + " |", "|---" * (1 + len(devices)) + "|"]
    for model in MODELS:
        row = [found[d, model] for d in devices if (d, model) in found]
        if not row:
            continue
        cells = [
            f"{p.best_hand} {p.hand_ms[p.best_hand]:.0f}, x {p.best_single_ms / p.hand_ms[p.best_hand]:.2f}"
            for p in row
        ]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines


def summary(pairs: Sequence[Pair]) -> list[str]:
    """Markdown: counts and means."""
    wins = Counter(p.best_hand for p in pairs)
    lines = ["| hand policy | fastest on |", "|---|---|"]
    policies = sorted({name for p in pairs for name in p.hand_ms})
    lines += [f"| {name} | {wins[name]} of {len(pairs)} |" for name in sorted(policies, key=lambda n: (-wins[n], n))]
    best = [p.exact_ms or p.hand_ms[p.best_hand] for p in pairs]
    hand = geometric_mean([p.hand_ms[p.best_hand] / ms for p, ms in zip(pairs, best, strict=True)])
    single = geometric_mean([p.best_single_ms / ms for p, ms in zip(pairs, best, strict=True)])
    lines += [
        "",
        f"Geometric means: the best known plan is {hand:.3f} times as fast as the best hand policy, and",
        f"{single:.2f} times as fast as the best single processor.",
    ]
    tuned = [p for p in pairs if p.tuned_ms is not None]
    if tuned:
        failed = sum(worse_than_seeds(p) for p in tuned)
        gaps = [p.tuned_ms / p.bound_ms - 1 for p in tuned if p.tuned_ms and p.bound_ms]
        lines += [
            f"Training ended worse than its seeds on {failed} of {len(tuned)} pairs; mean gap to the proven bound "
            f"{100 * sum(gaps) / len(gaps):.2f} %, largest {100 * max(gaps):.2f} %.",
        ]
    return [*lines, ""]


def report(pairs: Sequence[Pair], condition: str, budget: int | None) -> str:
    """docs/pairs.md."""
    trained = f", each trained with {budget} evaluations" if budget else ""
    return "\n".join([
        "# Who wins where",
        "",
        "Made by `python experiments/pairs.py --train 60 --write`: ten models on eight phones, engine set `mace`, "
        f"`{condition}`{trained}.",
        "Every number is predicted or calibrated by the surrogate, none is measured; d2, d6, d7 and d8 are scaled from",
        "other phones. A cell names the fastest hand policy, its latency in ms, and how many times faster it is than",
        "the best single processor.",
        "",
        *winners_table(pairs),
        "",
        *summary(pairs),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--condition", default="cold")
    parser.add_argument("--train", type=int, metavar="BUDGET")
    parser.add_argument("--devices", nargs="+", default=PHONES)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    jobs = [Job(d, m, options.condition, options.train) for m in options.models for d in options.devices]
    pairs = []
    with ProcessPoolExecutor(options.workers) as pool:
        for pair in pool.map(run, jobs):
            pairs.append(pair)
            best = pair.best_hand
            print(f"{pair.device} {pair.model}: {best} {pair.hand_ms[best]:.1f} ms, exact {pair.exact_ms}, "
                  f"tuned {pair.tuned_ms}, {pair.wall_s:.1f} s", flush=True)  # fmt: skip
    text = report(pairs, options.condition, options.train)
    print(text)
    if options.write:
        (ROOT / "docs" / "pairs.md").write_text(text, encoding="utf-8")
        (ROOT / "docs" / "pairs.json").write_text(json.dumps([asdict(p) for p in pairs], indent=1) + "\n")


if __name__ == "__main__":
    main()
