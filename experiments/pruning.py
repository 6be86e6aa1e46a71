"""Prunes the built-in networks and networks that torch exports, and checks all that is promised of the results.

    python experiments/pruning.py [--only NAME ...] [--ratio R ...]

Of each network at each ratio: ONNX's checker passes, ONNX Runtime runs it, work and parameters are what was planned
from shapes alone, and a model in which the channels that go are zeros gives the same outputs without them. One table;
what stays whole, and why, below it. Weights are random, so nothing is said of accuracy.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments.torch_graphs import NETWORKS as LARGE  # noqa: E402
from hetrl import zoo  # noqa: E402
from hetrl.compress.pruning import Pruned, prune  # noqa: E402
from hetrl.compress.stages import stages  # noqa: E402
from hetrl.fidelity import seeded_inputs  # noqa: E402
from hetrl.graph.reader import graph_from_model  # noqa: E402
from tests import torch_models  # noqa: E402
from tests.pruning_help import difference, run, zeroed  # noqa: E402
from tests.torch_networks import NETWORKS  # noqa: E402

RATIOS = (0.1, 0.3, 0.5, 0.7)
SMALL = {
    "MobileNetLike": torch_models.MobileNetLike,
    "GoogLeNetLike": torch_models.GoogLeNetLike,
    "ViTLike": torch_models.ViTLike,
    **NETWORKS,
}
HEAD = "| network | ratio | parameters left | MACs left | MACs off the plan | zeroed channels | seconds | checker |"


def networks(folder: Path) -> dict[str, Callable[[], onnx.ModelProto]]:
    """How to make each model; torch's both exporters for the small ones."""
    found: dict[str, Callable[[], onnx.ModelProto]] = {
        name: lambda name=name: zoo.build(name, seeded_weights=0) for name in zoo.names()
    }
    for name, build in SMALL.items():
        for exporter, dynamo in (("", False), (" (dynamo)", True)):
            found[name + exporter] = lambda name=name, build=build, dynamo=dynamo: _exported(
                build, folder / f"{name}{dynamo}.onnx", 32, dynamo
            )
    for name, (build, size) in LARGE.items():
        found[name] = lambda name=name, build=build, size=size: _exported(build, folder / f"{name}.onnx", size, False)
    return found


def _exported(build: Callable[[], torch.nn.Module], path: Path, size: int, dynamo: bool) -> onnx.ModelProto:
    torch.manual_seed(0)
    return onnx.load(torch_models.export(build(), path, (1, 3, size, size), dynamo=dynamo))


def row(name: str, model: onnx.ModelProto, ratio: float) -> tuple[str, Pruned]:
    """One line of the table, and what it is of; raises where a promise is broken."""
    start = time.perf_counter()
    pruned = prune(model, ratio)
    seconds = time.perf_counter() - start
    onnx.checker.check_model(pruned.model, full_check=True)
    made, report = graph_from_model(pruned.model, name=name), pruned.report
    off = abs(made.macs / report.macs[1] - 1)
    assert off <= 0.01 and made.parameters == report.parameters[1], name
    inputs = seeded_inputs(made, 1)
    if pruned.removed:
        run(pruned.model, inputs)
        zeros = zeroed(model, pruned)
        again = prune(zeros, ratio)
        assert again.removed == pruned.removed, name
        error = difference(run(zeros, inputs), run(again.model, inputs))
        assert error <= 1e-5, (name, error)
        same = f"{error:.0e}"
    else:
        same = "none taken"
    parameters, macs = (after / before for before, after in (report.parameters, report.macs))
    return f"| {name} | {ratio} | {parameters:.3f} | {macs:.3f} | {off:.1%} | {same} | {seconds:.2f} | ok |", pruned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--ratio", nargs="+", type=float, default=list(RATIOS))
    options = parser.parse_args()
    notes: list[str] = []
    print(HEAD, "|---|---|---|---|---|---|---|---|", sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in networks(Path(folder)).items():
            if options.only and name not in options.only:
                continue
            model = make()
            for ratio in options.ratio:
                line, pruned = row(name, model, ratio)
                print(line, flush=True)
            graph = graph_from_model(model, name=name)
            parts = ", ".join(f"{s.name} of {s.resolution} ({len(s.groups)} groups)" for s in stages(graph))
            notes.append(f"{name}: {len(graph.channels.prunable)} groups may lose channels; stages {parts}")
            notes += [f"    {group.name} ({group.size}) whole: {group.reason}" for group in pruned.report.whole]
    print("", *notes, sep="\n")
    print(f"\nlargest memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
