"""How far the surrogate is from measured phones: refits from the package's data, held out honestly.

python experiments/fidelity.py            print docs/fidelity.md
python experiments/fidelity.py --write    write docs/fidelity.json, docs/fidelity.md, and docs/fidelity.png
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hetrl.calibration import held_out, uncertainty
from hetrl.calibration.fit import PHONES, strategy_class
from hetrl.calibration.predict import CellError, mean_abs, of_classes, order_share
from hetrl.calibration.rows import cells
from hetrl.calibration.scaling import NEAREST
from hetrl.condition import Condition
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.graph.reader import graph_from_model
from hetrl.plan import Axis, Memory, Part, Plan, Segment
from hetrl.plan_check import model_ref
from hetrl.zoo.builder import Builder

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# (figure, goal, stretch) in percent.
UNSEEN_GOALS = {
    "mace_cpu": ("CPU alone", 12, 9),
    "mace_gpu": ("GPU alone", 13, 8),
    "ideal": ('CoDL\'s "Ideal"', 8, 6),
    "codl_snapdragon": ("CoDL, the GPU's memory type, Snapdragon", 10, 7),
    "codl": ("CoDL, the GPU's memory type, all", 13, 10),
    "mulayer": ("muLayer", 13, 10),
    "codl_other": ("CoDL, the other memory type", 16, 12),
}
SEEN_GOALS = {"mace_cpu": ("CPU alone", 6, 4), "mace_gpu": ("GPU alone", 12, 9)}
ORDER_GOAL, ORDER_STRETCH = 95, 98
COVERAGE_GOAL, COVERAGE_LEAST = 90, 85
# Single convolutions that CoDL (figures 2 to 4) timed on d1 and nobody fitted: size, input and output channels, kernel,
# the GPU's share, and measured ms on CPU and GPU.
MICRO = (
    ("1x1, 52 x 52, 256 to 128 channels, each processor alone", (52, 256, 128, 1), 100, 1.505, 1.126),
    ("3x3, 112 x 112, 32 to 64 channels, half of the rows on each", (112, 32, 64, 3), 50, 1.89, 1.95),
)
COLOURS = {"mace_cpu": "C0", "mace_gpu": "C1", "codl": "C2", "codl_other": "C3", "mulayer": "C4", "ideal": "C5"}


def percent(value: float) -> float:
    return round(100 * value, 2)


def figures(rows: Sequence[CellError]) -> dict[str, dict[str, float]]:
    """Mean and largest absolute error of each class, percent."""
    return {
        name: {
            "mean": percent(mean_abs(chosen)),
            "max": percent(max(abs(r.error) for r in chosen)),
            "n": len(chosen),
        }
        for name, chosen in of_classes(rows).items()
    }


def micro() -> list[dict[str, Any]]:
    """`MICRO` beside what d1's device file gives: how long each processor works, without moving data."""
    engine = load_spec("d1").engine("mace")
    cpu, gpu = (p.id for p in engine.processors)
    rows = []
    for name, (size, channels, out, kernel), share_pct, *measured in MICRO:
        net = Builder("one")
        network = net.finish(net.conv(net.input("x", (1, channels, size, size)), "y", out, kernel))
        device = SurrogateDevice(load_spec("d1"), graph_from_model(network.model, name="one"))
        split = (Part(gpu, share_pct), Part(cpu, 100 - share_pct))
        runs = [split] * 2 if share_pct < 100 else [(Part(cpu),), (Part(gpu),)]
        for unit, parts, measured_ms in zip((cpu, gpu), runs, measured, strict=True):
            predicted_ms = _busy_ms(device, parts, unit)
            rows.append(
                {
                    "operator": name,
                    "processor": unit.partition("/")[0].upper(),
                    "predicted_ms": round(predicted_ms, 3),
                    "measured_ms": measured_ms,
                }
            )
    return rows


def _busy_ms(device: SurrogateDevice, parts: tuple[Part, ...], processor: str) -> float:
    segment = Segment(
        nodes=device.graph.group_node_ids(0),
        parts=parts,
        axis=Axis.HEIGHT if len(parts) > 1 else Axis.NONE,
        memory=Memory.IMAGE if parts[0].processor.startswith("gpu") else None,
    )
    plan = Plan(model=model_ref(device.graph), device="d1", engines=("mace",), segments=(segment,))
    answer = device.measure(plan, Condition())
    busy = {u.processor: u.busy for u in answer.utilization}
    return busy[processor] * (answer.latency_ms or 0.0)


def collect() -> dict[str, Any]:
    """All figures."""
    began = time.perf_counter()
    held_out.fit_ahead(nested=True)
    inside, unseen = held_out.in_sample(), held_out.leave_one_model_out()
    seen, scaled = held_out.leave_one_pair_out(), held_out.leave_one_phone_out()
    d1 = [r for r in inside if r.cell.device == "d1"]
    cover = {
        "seen": uncertainty.nested_seen(),
        "unseen": uncertainty.nested_unseen(),
        "scaled": uncertainty.nested_scaled(),
    }
    return {
        "cells": len(cells()),
        "in_sample": figures(inside),
        "in_sample_d1": {
            "all": percent(mean_abs(d1)),
            "without_codl_buffer": percent(mean_abs([r for r in d1 if r.cell.strategy != "codl_buffer"])),
        },
        "unseen_network": figures(unseen),
        "unseen_network_order": percent(order_share(unseen)),
        "seen_network": figures(seen),
        "seen_network_order": percent(order_share(seen)),
        "scaled_phone": figures(scaled),
        "scaled_phone_order": percent(order_share(scaled)),
        "coverage": {
            k: {"inside": sum(v), "n": len(v), "percent": percent(float(np.mean(v)))} for k, v in cover.items()
        },
        "spread": {p: _spreads(p) for p in ("d1", "d5", *NEAREST)},
        "micro": micro(),
        "seconds": round(time.perf_counter() - began),
        "cores": os.cpu_count(),
    }


def _spreads(phone: str) -> dict[str, dict[str, float]]:
    table = uncertainty.mace_errors(phone)
    return {kind: {name: round(q.value, 3) for name, q in found.items()} for kind, found in table.items()}


def _goals(found: dict[str, Any], goals: dict[str, tuple[str, int, int]]) -> list[str]:
    return [
        f"| {title} | {found[name]['mean']:.1f} % | {goal} % | {stretch} % | {found[name]['max']:.0f} % "
        f"| {found[name]['n']} |"
        for name, (title, goal, stretch) in goals.items()
    ]


def report(found: dict[str, Any]) -> str:
    """docs/fidelity.md."""
    head = ["| | mean error | goal | stretch goal | largest | cells |", "|---|---|---|---|---|---|"]
    cover, d1 = found["coverage"], found["in_sample_d1"]
    titles = {"cpu": "CPU alone", "gpu": "GPU alone", "split": "split", "channels": "split over channels only",
              "other_memory": "the GPU's other memory type"}  # fmt: skip
    lines = [
        "# How far the surrogate is from measured phones",
        "",
        f"Made by `python experiments/fidelity.py --write`: {found['cells']} latencies of CoDL (MobiSys'22) on "
        f"{', '.join(PHONES)}, engine set `mace`.",
        "Mean absolute error of whole-network latency. A fit never sees a cell that it is judged by, nor the ratios",
        "that CoDL chose for that network on that phone. Operator classes, rounding rules, priors' centres and the",
        "weights of strategies were chosen with all cells in sight all the same, so these figures are somewhat",
        "optimistic. [calibration.md](calibration.md) has every cell and how the numbers are made.",
        "",
        "## Unseen networks",
        "",
        "Leave one network out, on all phones at once.",
        "",
        *head,
        *_goals(found["unseen_network"], UNSEEN_GOALS),
        f"| order of strategies more than 15 % apart | {found['unseen_network_order']:.1f} % | {ORDER_GOAL} % "
        f"| {ORDER_STRETCH} % | | |",
        "",
        "## Networks seen on other phones only",
        "",
        "Leave one (phone, network) out with all its strategies.",
        "",
        *head,
        *_goals(found["seen_network"], SEEN_GOALS),
        "",
        "The other classes: "
        + ", ".join(
            f"{title} {found['seen_network'][name]['mean']:.1f} %"
            for name, (title, _, _) in UNSEEN_GOALS.items()
            if name not in SEEN_GOALS
        )
        + f"; order {found['seen_network_order']:.1f} %.",
        "",
        "## Phones that nobody measured",
        "",
        "Each measured phone predicted by the scaling rules from the others (d5: the CPU alone, it has the only Mali).",
        "",
        "| | mean error | largest | cells |",
        "|---|---|---|---|",
        *(
            f"| {title} | {found['scaled_phone'][name]['mean']:.1f} % | {found['scaled_phone'][name]['max']:.0f} % "
            f"| {found['scaled_phone'][name]['n']} |"
            for name, (title, _, _) in UNSEEN_GOALS.items()
        ),
        f"| order of strategies | {found['scaled_phone_order']:.1f} % | | |",
        "",
        "How much the other memory type costs differs from phone to phone, and no rule gives it: one probe would.",
        "",
        "## In sample",
        "",
        f"d1: {d1['all']:.1f} % over all cells, {d1['without_codl_buffer']:.1f} % without CoDL in buffers.",
        "",
        "| | mean error | largest | cells |",
        "|---|---|---|---|",
        *(
            f"| {title} | {found['in_sample'][name]['mean']:.1f} % | {found['in_sample'][name]['max']:.0f} % "
            f"| {found['in_sample'][name]['n']} |"
            for name, (title, _, _) in UNSEEN_GOALS.items()
        ),
        "",
        "## Single operators that nobody fitted",
        "",
        "CoDL's figures 2 to 4 time single convolutions on d1: how long each processor works on its part.",
        "",
        "| operator | processor | predicted | measured | error |",
        "|---|---|---|---|---|",
        *(
            f"| {r['operator']} | {r['processor']} | {r['predicted_ms']:.2f} ms | {r['measured_ms']:g} ms "
            f"| {100 * (r['predicted_ms'] / r['measured_ms'] - 1):+.0f} % |"
            for r in found["micro"]
        ),
        "",
        "Rates of whole networks average over many shapes; single small operators are known less well.",
        "",
        "## Intervals",
        "",
        "A 90 % interval is latency / e^s to latency * e^s; s by how well the network is known and by the plan:",
        "root mean square of held-out ln errors of its kind, times Student's t for the number of independent groups.",
        "Plans on Mali (d5 alone) are worse known than on Adreno (d1, d3, d4), so each GPU family has its own errors,",
        "but no spread below half of that of all phones: a few errors can be small by chance. A scaled phone adds what",
        "scaling costs, tried on the measured phones, and is never known better than its family.",
        "",
        "| phone | network | " + " | ".join(titles.values()) + " |",
        "|---" * (2 + len(titles)) + "|",
        *(
            f"| {'d1, d3, d4' if phone == 'd1' else phone} | {kind} | "
            + " | ".join(f"{spread[name]:.2f}" for name in titles)
            + " |"
            for phone, kinds in found["spread"].items()
            for kind, spread in kinds.items()
        ),
        "",
        f"Aim: {COVERAGE_GOAL} % inside, at least {COVERAGE_LEAST} %. Widths of a checked cell come from other cells:",
        "",
        "| kind | inside | of | |",
        "|---|---|---|---|",
        f"| seen on other phones; widths from fits without the cell | {_cover(cover['seen'])} |",
        f"| unseen network; widths from fits without the network | {_cover(cover['unseen'])} |",
        f"| scaled phone; widths from the other phones' errors | {_cover(cover['scaled'])} |",
        "",
        "![Predicted against measured](fidelity.png)",
        "",
        f"Made in {found['seconds']} s on {found['cores']} cores.",
        "",
    ]
    return "\n".join(lines)


def _cover(found: dict[str, float]) -> str:
    return f"{found['inside']} | {found['n']} | {found['percent']:.0f} %"


def plot(path: Path) -> None:
    """Predicted against measured, unseen and seen networks; nothing without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    kinds = {
        "unseen networks": held_out.leave_one_model_out(),
        "networks seen on other phones": held_out.leave_one_pair_out(),
        "scaled phones": held_out.leave_one_phone_out(),
    }
    figure, panels = plt.subplots(1, len(kinds), figsize=(12, 4.2), sharex=True, sharey=True)
    for panel, (title, rows) in zip(panels, kinds.items(), strict=True):
        for name, colour in COLOURS.items():
            chosen = [r for r in rows if strategy_class(r.cell) == name]
            x, y = [r.cell.latency_ms for r in chosen], [r.predicted_ms for r in chosen]
            panel.scatter(x, y, s=14, c=colour, label=name)
        panel.plot([80, 3000], [80, 3000], c="0.6", lw=1)
        panel.set(title=title, xscale="log", yscale="log", xlabel="measured, ms")
    panels[0].set_ylabel("predicted, ms")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=70, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/fidelity.json, .md and .png")
    write = parser.parse_args().write
    found = collect()
    text = report(found)
    print(text)
    if write:
        (DOCS / "fidelity.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (DOCS / "fidelity.md").write_text(text, encoding="utf-8")
        plot(DOCS / "fidelity.png")


if __name__ == "__main__":
    main()
