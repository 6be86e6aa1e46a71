"""Low rank and narrower numbers on the ten networks of the zoo and some of torch: sizes, work, and errors of outputs.

    python experiments/low_rank.py [--models resnet18,branchy] [--folder FOLDER]

Weights are seeded, so that their spectra are flat: trained ones lose far less at the same rank. Full rank must give the
output of the original within 1e-4 (largest difference over largest value), and the squared error of the weights must
fall with the share of them that is kept. Each row: weights and multiply-accumulates that are left, the weights' error,
the outputs' error.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import onnx
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments.torch_graphs import NETWORKS, exported  # noqa: E402
from hetrl.compress.low_rank import LowRank, Scheme, factor  # noqa: E402
from hetrl.compress.recipe import Precision, Recipe, apply  # noqa: E402
from hetrl.compress.running import run_all  # noqa: E402
from hetrl.compress.weights import complete_model  # noqa: E402
from hetrl.fidelity import largest_error, seeded_inputs  # noqa: E402
from hetrl.graph.reader import graph_from_model  # noqa: E402
from hetrl.zoo import names  # noqa: E402
from hetrl.zoo.source import open_source  # noqa: E402
from tests.torch_models import ViTLike, export  # noqa: E402

FULL = 10**9
KEPT = (0.2, 0.4, 0.6)
EXACT = 1e-4
VIT = "vit (dynamo)"


def model_of(name: str, folder: Path) -> onnx.ModelProto:
    if name == VIT:
        torch.manual_seed(0)
        return complete_model(open_source(export(ViTLike(4), folder / "vit.onnx", (1, 3, 32, 32), dynamo=True), 0)[0])
    return complete_model(open_source(exported(name, folder) if name in NETWORKS else name, 0)[0])


def measured(name: str, folder: Path) -> bool:
    """Print the rows of one model; whether full rank is exact and errors fall."""
    model = model_of(name, folder)
    graph = graph_from_model(model, name=name)
    inputs = [seeded_inputs(graph, 0)]
    exact = run_all(model, inputs)[0]

    def row(what: str, other: onnx.ModelProto, weights_error: float | None, seconds: float) -> float:
        onnx.checker.check_model(other, full_check=True)
        after = graph_from_model(other, name=name)
        error = largest_error(run_all(other, inputs)[0], exact)
        shares = f"{after.weight_bytes / graph.weight_bytes:7.3f} {after.macs / graph.macs:7.3f}"
        told = "" if weights_error is None else f"{weights_error:.3f}"
        print(f"{name:14} {what:16} {shares} {told:>7} {error:9.2g} {seconds:6.1f} s", flush=True)
        return error

    fine = True
    for scheme in Scheme:
        start = time.perf_counter()
        whole = factor(model, LowRank(rank=FULL, scheme=scheme, always=True, matrices=scheme is Scheme.NARROW))
        fine &= row(f"{scheme} full", whole.model, None, time.perf_counter() - start) < EXACT
        errors = []
        for keep in KEPT:
            start = time.perf_counter()
            done = factor(model, LowRank(keep=keep, scheme=scheme))
            layers = done.report.factored
            lost = sum((1 - (layer.energy or 0)) for layer in layers)
            errors.append(math.sqrt(lost / max(len(layers), 1)))
            row(f"{scheme} {keep}", done.model, errors[-1], time.perf_counter() - start)
        fine &= errors == sorted(errors, reverse=True)
    for precision in (Precision.INT8, Precision.FP16, Precision.BF16):
        start = time.perf_counter()
        row(precision.value, apply(Recipe(precision=precision), model).model, None, time.perf_counter() - start)
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join([*NETWORKS, VIT, *names()]))
    parser.add_argument("--folder", type=Path, help="for exported networks")
    arguments = parser.parse_args()
    print(f"{'model':14} {'what':16} {'weights':>7} {'MACs':>7} {'lost':>7} {'error':>9}")
    with tempfile.TemporaryDirectory() as folder:
        wrong = [n for n in arguments.models.split(",") if not measured(n, arguments.folder or Path(folder))]
    if wrong:
        sys.exit(f"not exact at full rank, or errors that do not fall: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
