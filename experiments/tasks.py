"""Several models at once under Band's schedulers and under plans for whole requests.

python experiments/tasks.py            the tables
python experiments/tasks.py --write    also write docs/tasks.md
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from hetrl.objective import Objective
from hetrl.tasks.compare import compare_tasks
from hetrl.tasks.results import TaskComparison

ROOT = Path(__file__).resolve().parent.parent
INTRO = """# Several models at once

Made by `python experiments/tasks.py --write`. Requests come periodically for 2 s; a deadline is the period, unless the
table says otherwise. Every number is *predicted*: a discrete-event run on the surrogate's latencies.

- `band_*`: Band's schedulers (Jeong et al., MobiSys'22; rules from mrsnu/band) over its subgraphs. They were told what
  subgraphs take on a cold phone, and learn by a moving average (0.1) what they take now.
- `exact`: each model's fastest plan by itself, requests in the order of arrival.
- `hetrl`: one plan for each model (a processor alone, a hand policy's, the exact one), chosen by simulating all
  combinations: fewest misses, then fewest drops, then least mean latency. Where one of Band's schedulers does better,
  that is what `hetrl` runs; so it is never worse than a row beside it that keeps the accuracy budget. By the same
  measure it lets one model starve where that saves the deadlines of others.

Assumed: processors that work at once slow each other down by the engine's contention of two; a request holds its
plan's processors from start to end. Left out: the host's part in moving data and driving accelerators, memory, heat
that builds up, the screen, and starting a model. Nobody measured these runs on a phone.
"""


@dataclass(frozen=True)
class Case:
    device: str
    engine: str
    models: tuple[str, ...]
    periods_ms: tuple[float, ...]
    deadlines_ms: tuple[float, ...] = ()
    condition: str = "cold"
    max_accuracy_drop_pct: float = 0.0


CASES = (
    Case("d1", "mace", ("resnet18", "resnet18"), (60.0,)),
    Case("d1", "mace", ("resnet50", "resnet18"), (200.0, 66.0)),
    Case("d1", "mace", ("vgg16", "resnet18"), (400.0, 100.0), (400.0, 200.0)),
    Case("d1", "mace", ("vgg16", "resnet18"), (400.0, 100.0), (400.0, 200.0), "sigma1,competitors=1"),
    Case("d1", "tflite", ("resnet50", "yolov2", "regnetx_1_6gf"), (100.0,), (), "cold", 1.0),
    Case("d1", "tflite", ("resnet50", "yolov2", "regnetx_1_6gf"), (100.0,)),
    Case("d2", "tflite", ("resnet50", "yolov2", "vgg16"), (100.0,)),
)


def run(case: Case) -> TaskComparison:
    return compare_tasks(
        case.models,
        case.device,
        period_ms=case.periods_ms,
        deadline_ms=case.deadlines_ms,
        engine=case.engine,
        condition=case.condition,
        objective=Objective(max_accuracy_drop_pct=case.max_accuracy_drop_pct),
    )


def section(case: Case, told: TaskComparison) -> list[str]:
    hetrl = next(row for row in told.rows if row.scheduler == "hetrl")
    processors = list(hetrl.utilization)
    streams = [f"{s.model} every {s.period_ms:g} ms" for s in hetrl.streams]
    streams = [f"{text} (deadline {s.deadline_ms:g} ms)" if case.deadlines_ms else text
               for text, s in zip(streams, hetrl.streams, strict=True)]  # fmt: skip
    budget = f", {case.max_accuracy_drop_pct:g} points of accuracy may be lost" if case.max_accuracy_drop_pct else ""
    held = " | ".join(f"{name.partition('/')[0]} held" for name in processors)
    lines = [
        f"## {case.device}, {case.engine}, {case.condition}{budget}",
        "",
        f"{'; '.join(streams)}. `hetrl` runs {', '.join(f'{s.model}: {s.runs}' for s in hetrl.streams)}.",
        "",
        f"| scheduler | misses | dropped | per second | median ms | p90 ms | max ms | {held} | budget |",
        "|---|---|---|---|---|---|---|" + "---|" * (len(processors) + 1),
    ]
    total = sum(s.requests for s in hetrl.streams)
    for row in told.rows:
        latency = row.latency_ms
        times = ["-"] * 3
        if latency is not None:
            times = [f"{ms:.1f}" for ms in (latency.median_ms, latency.p90_ms, latency.max_ms)]
        cells = [row.scheduler, f"{row.misses} of {total}", str(row.dropped), f"{row.throughput_per_s:.1f}", *times]
        cells += [f"{100 * row.utilization[name]:.0f} %" for name in processors]
        lines.append(f"| {' | '.join(cells)} | {'kept' if row.keeps_budgets else 'broken'} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    text = "\n".join([INTRO, *(line for case in CASES for line in section(case, run(case)))])
    print(text)
    if write:
        (ROOT / "docs" / "tasks.md").write_text(text.rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
