"""Compression chosen together with placement: what it gains on a phone's surrogate, and measured on this computer.

    python experiments/co_tuning.py            print docs/co_tuning.md
    python experiments/co_tuning.py --write    write it

On d1, the exact optimum of each network within 5 points of accuracy, predicted: with one pruning ratio for all stages
alone, with ratios by stage as well, and with low rank as well. On this computer, the network of `tests/digits.py`
within 1 point, measured on pictures that no step saw, against the best plan without compression; measured in turns.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import hetrl  # noqa: E402
from hetrl.accuracy import PREDICTED_DROPS  # noqa: E402
from hetrl.agents.exact import Exact, exact  # noqa: E402
from hetrl.compression import Compression  # noqa: E402
from hetrl.condition import AT_REST  # noqa: E402
from hetrl.device_bridge.runner.significance import median_interval  # noqa: E402
from hetrl.device_bridge.spec import load_spec  # noqa: E402
from hetrl.device_bridge.surrogate.conditions import COLD  # noqa: E402
from hetrl.device_bridge.surrogate.device import SurrogateDevice  # noqa: E402
from hetrl.envs import space as space_module  # noqa: E402
from hetrl.envs.compressions import compressions  # noqa: E402
from hetrl.envs.space import PlanSpace  # noqa: E402
from hetrl.objective import Objective  # noqa: E402
from hetrl.zoo import names  # noqa: E402
from hetrl.zoo.resolve import resolve_model  # noqa: E402
from tests.digits import digits_in  # noqa: E402

POINTS, DEVICE, ROUNDS = 5.0, "d1", 7
FIVE = Objective(max_accuracy_drop_pct=POINTS)
Chosen = Callable[[Compression], bool]
KINDS: dict[str, Chosen] = {
    "none": lambda one: not one.changes,
    "one ratio": lambda one: len(one.ratios) == 1 and not one.low_rank,
    "by stage": lambda one: not one.low_rank,
    "and low rank": lambda one: True,
}


def optima(model: str) -> dict[str, Exact]:
    """The exact optimum for each kind of compressions."""
    device = SurrogateDevice(load_spec(DEVICE), resolve_model(model))
    found = {}
    for kind, chosen in KINDS.items():
        space_module.compressions = lambda *given, chosen=chosen: tuple(filter(chosen, compressions(*given)))
        found[kind] = exact(PlanSpace(device, FIVE), FIVE, COLD)
    space_module.compressions = compressions
    return found


@dataclass(frozen=True)
class Measured:
    """One run on this computer; `speedup` over the plan of a run without compression, in turns."""

    seed: int
    compression: str
    drop: str
    whole_ms: float
    smaller_ms: float
    speedup: float
    interval: tuple[float, float] | None


def on_host(seed: int, budget: int) -> Measured:
    with tempfile.TemporaryDirectory() as name:
        digits = digits_in(Path(name))
        model = str(digits.model)
        asked = {"budget": budget, "seed": seed}
        found = hetrl.tune(
            model, "host", objective=Objective(max_accuracy_drop_pct=1.0), eval_data=digits.test, **asked
        )
        whole = hetrl.tune(model, "host", **asked)
        ratios, times = [], []
        with hetrl.open_device("host", hetrl.load_model(model)) as device:
            for _ in range(ROUNDS):
                one, other = device.compare([whole.plan, found.plan], AT_REST)
                ratios += [a / b for a, b in zip(one.samples_ms, other.samples_ms, strict=True)]
                times.append((one.latency_ms or math.nan, other.latency_ms or math.nan))
    known = found.accuracy
    assert known is not None and known.interval_pct is not None
    drop = f"{known.drop_pct:.2f} ({known.interval_pct[0]:.2f} to {known.interval_pct[1]:.2f}) of {known.samples}"
    middle = [statistics.median(each) for each in zip(*times, strict=True)]
    words = str(found.plan.compression.shapes)
    return Measured(seed, words, drop, *middle, statistics.median(ratios), median_interval(ratios, 0.9))


def document(models: list[str], budget: int, seeds: int) -> str:
    lines = [
        "# Compression chosen with placement",
        "",
        "Made by `python experiments/co_tuning.py --write`.",
        "",
        f"## On {DEVICE}: exact optima within {POINTS:g} points of accuracy",
        "",
        "Latencies in ms, the loss of accuracy in points; both predicted.",
        "",
        f"| model | {' | '.join(KINDS)} | chosen | points |",
        f"|---|{'---|' * len(KINDS)}---|---|",
    ]
    gains = []
    for model in models:
        found = optima(model)
        ms = [one.latency_ms for one in found.values()]
        best = found["and low rank"].compression
        drop = PREDICTED_DROPS.drop_pct(best)
        gains.append(ms[-1] / ms[1])
        lines.append(f"| {model} | {' | '.join(f'{each:.1f}' for each in ms)} | {best} | {drop:.2f} |")
    middle = statistics.geometric_mean(gains)
    lines += ["", f"All kinds together take {middle:.3f} of what one ratio for all takes (geometric mean).", ""]
    lines += [
        "## On this computer: digits within 1 point, measured",
        "",
        "`hetrl train --device host --model digits.onnx --eval-data digits.npz --max-accuracy-drop 1 --budget "
        f"{budget}`, beside the same without compression; then both plans in turns. The drop is that on the half of",
        "the data that was held back, with its 90 % interval.",
        "",
        "| seed | compression | drop | without, ms | with, ms | times as fast (90 %) |",
        "|---|---|---|---|---|---|",
    ]
    for seed in range(seeds):
        row = on_host(seed, budget)
        interval = f" ({row.interval[0]:.2f} to {row.interval[1]:.2f})" if row.interval else ""
        lines.append(
            f"| {row.seed} | {row.compression} | {row.drop} | {row.whole_ms:.3f} | {row.smaller_ms:.3f} | "
            f"{row.speedup:.2f}{interval} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(names()))
    parser.add_argument("--budget", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = document(options.models, options.budget, options.seeds)
    print(text)
    if options.write:
        (ROOT / "docs" / "co_tuning.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
