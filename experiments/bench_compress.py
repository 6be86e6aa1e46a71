"""What pruning half of the channels gains on this computer: measured in turns, against fewer operations and prediction.

python experiments/bench_compress.py            print docs/bench_compress.md
python experiments/bench_compress.py --write    write docs/bench_compress.md and .json

One core, ONNX Runtime in float32. The surrogate is fitted to recordings of the unpruned networks (`hetrl profile`,
`hetrl calibrate`), made first and kept in runs/bench_compress, and predicts both times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import torch_graphs

import hetrl
from hetrl.compress.planned import compressed_graph
from hetrl.compression import Compression
from hetrl.condition import AT_REST
from hetrl.device_bridge.host.opening import open_host
from hetrl.device_bridge.runner.significance import median_interval
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.testing.devices import whole_model_plans

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs" / "bench_compress"
ENGINE, PROCESSOR = "onnxruntime", "cpu/onnxruntime/fp32"
MODELS = ("resnet18", "mobile")
RATIO = 0.5
CORE = 0
ROUNDS = 5
ENOUGH = 0.6  # of the ratio of operations is what the speed-up is to be at least
CLOSE = 0.15  # to the measured speed-up is what the predicted one is to be


@dataclass(frozen=True)
class Row:
    """One network; times in ms, medians of all rounds."""

    model: str
    macs_ratio: float
    whole_ms: float
    pruned_ms: float
    speedup: float
    interval: tuple[float, float] | None
    predicted: float

    @property
    def share(self) -> float:
        return self.speedup / self.macs_ratio

    @property
    def error(self) -> float:
        return self.predicted / self.speedup - 1


def measure(name: str) -> Row:
    source = str(torch_graphs.exported(name, RUNS)) if name in torch_graphs.NETWORKS else name
    recording, file = RUNS / f"{name}.jsonl", RUNS / f"{name}.json"
    hetrl.profile(source, "host", recording, engine=ENGINE, rounds=3, seeded_weights=0)
    hetrl.calibrate([recording], out=file, models=[source] if source != name else [])
    graph = hetrl.load_model(source)
    with open_host("", graph, ENGINE) as device:
        plan = next(p for p in whole_model_plans(device) if p.processors == (PROCESSOR,))
        smaller = Compression.of((RATIO,), device.spec.channel_multiple)
        small = msgspec.structs.replace(plan, compression=smaller)
        ratios, whole, less = [], [], []
        for _ in range(ROUNDS):
            one, other = device.compare([plan, small], AT_REST)
            for answer in (one, other):
                if answer.error is not None:
                    raise SystemExit(f"{name}: {answer.error.message}")
            ratios += [a / b for a, b in zip(one.samples_ms, other.samples_ms, strict=True)]
            whole += one.samples_ms
            less += other.samples_ms
    surrogate = SurrogateDevice(load_spec(str(file)), graph, ENGINE)
    said = [surrogate.measure(p, AT_REST).latency_ms or float("nan") for p in (plan, small)]
    return Row(
        name,
        graph.macs / compressed_graph(graph, smaller).macs,
        statistics.median(whole),
        statistics.median(less),
        statistics.median(ratios),
        median_interval(ratios, 0.9),
        said[0] / said[1],
    )


def markdown(rows: list[Row]) -> str:
    lines = [
        "# What pruning gains on this computer",
        "",
        f"Made by `python experiments/bench_compress.py --write`: {RATIO:g} of the channels pruned, ONNX Runtime in",
        "float32, one core, both networks measured in turns. Channels stay in the multiples that the device works on.",
        "The prediction is that of the surrogate that is fitted to the unpruned network.",
        "",
        "| model | operations | measured, ms | speed-up (90 %) | of the operations' ratio | predicted | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        interval = f" ({row.interval[0]:.2f} to {row.interval[1]:.2f})" if row.interval else ""
        lines.append(
            f"| {row.model} | {row.macs_ratio:.2f} times fewer | {row.whole_ms:.2f} -> {row.pruned_ms:.2f} | "
            f"{row.speedup:.2f}{interval} | {row.share:.2f} (needed: {ENOUGH}) | {row.predicted:.2f} | "
            f"{row.error:+.0%} (needed: {CLOSE:.0%}) |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {CORE})
    RUNS.mkdir(parents=True, exist_ok=True)
    rows = [measure(name) for name in options.models]
    text = markdown(rows)
    print(text)
    if options.write:
        (ROOT / "docs" / "bench_compress.md").write_text(text, encoding="utf-8")
        (ROOT / "docs" / "bench_compress.json").write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
