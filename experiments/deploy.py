"""Exports many plans of many networks to every runtime, loads each bundle there, and checks it.

    python experiments/deploy.py [--models NAME ...] [--formats NAME ...] [--random N] [--host] [--write]

The ten built-in networks with seeded weights and three that torch exports; on d1 five hand policies, random legal
plans (shares, caps, windows, branches side by side) and what `hetrl train` finds. A bundle counts if `hetrl validate`
finds nothing wrong: right outputs, operators where the plan has them (this computer's CPUs stand in for what is not
here). Hand policies' plans are also lowered, and the price must be what the surrogate says of the lowered plan.
`--host` exports what `hetrl train --device host` finds instead, lowered where a format cannot carry it.

Rows are kept in runs/deploy: the same command goes on where it was stopped, and tries again what failed. `--write`
writes docs/deploy.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import hetrl  # noqa: E402
from experiments.torch_graphs import NETWORKS as LARGE  # noqa: E402
from experiments.torch_graphs import exported as large_file  # noqa: E402
from hetrl import zoo  # noqa: E402
from hetrl.agents.policies import find_policy  # noqa: E402
from hetrl.device_bridge.spec import load_spec  # noqa: E402
from hetrl.device_bridge.surrogate.device import SurrogateDevice  # noqa: E402
from hetrl.envs.space import PlanSpace  # noqa: E402
from hetrl.errors import HetrlError, Infeasible  # noqa: E402
from hetrl.export.bundle import open_bundle  # noqa: E402
from hetrl.export.timing import REPEATS  # noqa: E402
from hetrl.exporting import Asked, export  # noqa: E402
from hetrl.objective import Objective  # noqa: E402
from hetrl.plan import Plan, encode_plan  # noqa: E402
from hetrl.testing.models import random_decisions  # noqa: E402
from hetrl.validating import validate_bundle  # noqa: E402
from hetrl.zoo.resolve import resolve_model  # noqa: E402

DEVICE = "d1"
FORMATS = ("onnxruntime", "openvino", "ncnn")
TEXTS = ("codl", "mace", "band", "mnn", "tflite")  # hand policies' plans alone, lowered
HANDS = ("mace_cpu", "mace_gpu_image", "codl_image", "mulayer", "band_heft")
RANDOM, BUDGET, HOST_BUDGET = 20, 60, 30
ON_HOST = "learned on host"
THIRD = "densenet"
FOLDER = ROOT / "runs" / "deploy"
LOGS = (FOLDER / "rows.jsonl", FOLDER / "host_rows.jsonl")


def models() -> list[str]:
    """Small ones first."""
    found = sorted(zoo.names(), key=lambda name: resolve_model(name).weight_bytes)
    return [THIRD, *LARGE, *found]


def model_file(name: str) -> str:
    """What `--model` gets."""
    if name in zoo.names():
        return name
    FOLDER.mkdir(parents=True, exist_ok=True)
    if name in LARGE:
        return str(large_file(name, FOLDER))
    from tests.torch_models import export as to_onnx
    from tests.torch_networks import NETWORKS

    path = FOLDER / f"{name}.onnx"
    if not path.exists():
        to_onnx(NETWORKS["DenseNetLike"](), path, (1, 3, 32, 32), dynamo=True)
    return str(path)


def plans(name: str, count: int) -> Iterator[tuple[str, Plan]]:
    """By name."""
    model = model_file(name)
    graph = resolve_model(model)
    device = SurrogateDevice(load_spec(DEVICE), graph)
    for policy in HANDS:
        yield policy, find_policy(policy).plan(device)
    space = PlanSpace(device, Objective())
    for number, column in enumerate(random_decisions(space, 0, count).T):
        yield f"random {number}", space.plan(column)
    yield "learned", hetrl.tune(model, DEVICE, budget=BUDGET, seed=0).plan


def host_plans(name: str) -> Iterator[tuple[str, Plan]]:
    """One, in whatever precision the CPU has."""
    found = hetrl.tune(model_file(name), "host", budget=HOST_BUDGET, seed=0, objective=Objective(max_output_error=0.05))
    yield ON_HOST, found.plan


def text_row(name: str, label: str, plan: Plan, format_name: str, folder: Path) -> dict[str, object]:
    """Lower a plan to a format that describes it, and look at the files."""
    file = folder / "plan.json"
    file.write_bytes(encode_plan(plan))
    found: dict[str, object] = {"model": name, "plan": label, "format": format_name, "splits": plan.splits}
    began = time.perf_counter()
    try:
        found["lowered_right"] = lowered_right(file, format_name, folder / "lowered", Asked(model=model_file(name)))
        checked = validate_bundle(folder / "lowered")
        found |= {"ok": checked.ok, "failed": [c.detail for c in checked.checks if c.ok is False]}
    except HetrlError as error:
        found |= {"ok": False, "failed": [str(error)]}
    return found | {"wall_s": time.perf_counter() - began}


def row(name: str, label: str, plan: Plan, format_name: str, folder: Path) -> dict[str, object]:
    """Export, and look at what came of it."""
    file = folder / "plan.json"
    file.write_bytes(encode_plan(plan))
    asked = Asked(model=model_file(name), seeded_weights=0 if name in zoo.names() else None)
    began = time.perf_counter()
    found: dict[str, object] = {"model": name, "plan": label, "format": format_name, "splits": plan.splits}
    found |= {"segments": len(plan.segments), "processors": plan.processors}
    try:
        try:
            done = export(file, format_name, folder / "bundle", asked)
        except Infeasible as error:
            if label != ON_HOST:
                raise
            found["refused"] = str(error)
            done = export(file, format_name, folder / "bundle", replace(asked, lower=True))
        found |= {"bytes": done.bytes, "export_s": time.perf_counter() - began, "left_out": len(done.left_out)}
        checked = validate_bundle(folder / "bundle", repeats=REPEATS if label == ON_HOST else 1)
        found |= {"ok": checked.ok, "failed": [c.detail for c in checked.checks if c.ok is False]}
        found |= {c.name: c.detail for c in checked.checks if c.name in ("outputs", "placement", "latency")}
        shutil.rmtree(folder / "bundle")
        if label in HANDS:
            found["lowered_right"] = lowered_right(file, format_name, folder / "lowered", asked)
            shutil.rmtree(folder / "lowered")
    except HetrlError as error:
        found |= {"ok": False, "failed": [str(error)]}
    return found | {"wall_s": time.perf_counter() - began}


def lowered_right(plan: Path, format_name: str, out: Path, asked: Asked) -> bool:
    """Whether what `--lower` says of its plan is what the device says."""
    lower = Asked(model=asked.model, seeded_weights=asked.seeded_weights, lower=True)
    done = export(plan, format_name, out, lower)
    with open_bundle(out) as bundle:
        kept = bundle.manifest.plan
    said = hetrl.measure(str(asked.model), DEVICE, plan=kept).latency_ms
    return done.expected is not None and done.expected.latency_ms == said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=models())
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--random", type=int, default=RANDOM)
    parser.add_argument("--host", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    log = LOGS[options.host]
    done = kept(log)
    for name in options.models:
        if options.host and all(done.get((name, ON_HOST, f), {}).get("ok") for f in options.formats):
            continue
        for label, plan in host_plans(name) if options.host else plans(name, options.random):
            for format_name in (*options.formats, *(TEXTS if label in HANDS else ())):
                if done.get((name, label, format_name), {}).get("ok"):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    make = text_row if format_name in TEXTS else row
                    found = make(name, label, plan, format_name, Path(folder))
                done[name, label, format_name] = found
                with log.open("a") as file:
                    file.write(json.dumps(found) + "\n")
                print(name, label, format_name, "ok" if found["ok"] else found["failed"], f"{found['wall_s']:.1f} s")
    wanted = {*options.formats, *TEXTS}
    text = report(
        *([r for (name, _, f), r in kept(log).items() if name in options.models and f in wanted] for log in LOGS)
    )
    print(text)
    if options.write:
        (ROOT / "docs" / "deploy.md").write_text(text)


def kept(log: Path) -> dict[tuple[str, str, str], dict]:
    """Rows by network, plan and format; the last of each, networks in the order of `models`."""
    found = {(r["model"], r["plan"], r["format"]): r for r in map(json.loads, log.open() if log.exists() else ())}
    order = models()
    return dict(sorted(found.items(), key=lambda entry: order.index(entry[0][0])))


def report(rows: list[dict], host: list[dict]) -> str:
    """Tables of networks and formats: bundles that hold, of how many, and the largest error of outputs."""
    alone = [r for r in rows if r["format"] == "openvino" and r["splits"] == 0 and "placement" in r and "segments" in r]
    same = [r for r in alone if f", {r['segments']} submodel" in r["placement"]]
    lines = [
        "# Bundles in their runtimes",
        "",
        "Made by `python experiments/deploy.py --write`: plans exported, loaded by the real runtime and checked by "
        "`hetrl validate`.",
        "",
        "## Plans of d1",
        "",
        f"{len({r['model'] for r in rows})} of {len(models())} networks; of each the plans of {', '.join(HANDS)}, "
        f"{RANDOM} random legal plans and a learned one. Each cell: "
        "bundles without a failed check, of how many; how many plans share operators; the largest error of an output.",
        "",
        f"Last columns: hand policies' plans lowered to the runtimes and to {', '.join(TEXTS)}; of the latter, how "
        "many whose files say what the plan does, and of all, how many whose price is what `hetrl measure` says.",
        "",
        "| network | " + " | ".join(FORMATS) + " | text files | prices |",
        "|---|" + "---|" * (len(FORMATS) + 2),
    ]
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        lowered = [row["lowered_right"] for row in mine if "lowered_right" in row]
        texts = [row["ok"] for row in mine if row["format"] in TEXTS]
        prices = f"{sum(lowered)} of {len(lowered)}"
        lines.append(f"| {name} | {' | '.join(cells(mine))} | {sum(texts)} of {len(texts)} | {prices} |")
    lines += [
        "",
        f"OpenVINO reports as many submodels as the plan has segments for {len(same)} of {len(alone)} plans that share "
        "nothing. Where a network has branches, HETERO joins segments of one device that touch, and cuts what would "
        "wait for itself: `hetrl validate` holds the count against pieces of one device that touch.",
    ]
    if host:
        lines += [
            "",
            "## Plans of a computer",
            "",
            f"What `hetrl train --device host --budget {HOST_BUDGET} --max-output-error 0.05` found on a computer of "
            "two cores. A plan of engines or precisions that a format does not have is lowered (said in the cell).",
            "",
            "| network | processors | " + " | ".join(FORMATS) + " |",
            "|---|---|" + "---|" * len(FORMATS),
        ]
        for name in dict.fromkeys(row["model"] for row in host):
            mine = [row for row in host if row["model"] == name]
            lines.append(f"| {name} | {', '.join(mine[0]['processors'])} | {' | '.join(cells(mine))} |")
    failed = [row for row in (*rows, *host) if not row["ok"]]
    if failed:
        lines += ["", "## What failed", ""]
        lines += [f"- {r['model']}, {r['plan']}, {r['format']}: {'; '.join(r['failed'])}" for r in failed]
    return "\n".join(lines) + "\n"


def cells(rows: list[dict]) -> list[str]:
    return [cell([row for row in rows if row["format"] == name]) for name in FORMATS]


def cell(rows: list[dict]) -> str:
    if not rows:
        return "-"
    errors = [float(row["outputs"].split()[2]) for row in rows if "outputs" in row]
    shared = sum(row["splits"] > 0 for row in rows)
    worst = f", {max(errors):.1g}" if errors else ""
    lowered = ", lowered" if any("refused" in row for row in rows) else ""
    return f"{sum(row['ok'] for row in rows)} of {len(rows)}, {shared} shared{worst}{lowered}"


if __name__ == "__main__":
    main()
