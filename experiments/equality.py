"""Whether plans that are cut into submodels compute what the whole model does: random plans of six networks, for real.

    python experiments/equality.py [--plans 50] [--models vgg16,resnet18] [--folder FOLDER]

The plans are random legal decisions for a computer with four processors (all cores and two halves of them in ONNX
Runtime, all cores in OpenVINO), weights and inputs are seeded. An error is the largest difference from the whole
model's outputs in ONNX Runtime, over the largest of these outputs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments.torch_graphs import NETWORKS, exported  # noqa: E402
from hetrl.device_bridge.blobs import BlobStore  # noqa: E402
from hetrl.device_bridge.runner.engines import find_engine  # noqa: E402
from hetrl.device_bridge.runner.executor import Executor  # noqa: E402
from hetrl.partition import Partitioner, largest_error, open_source, reference_outputs, seeded_inputs  # noqa: E402
from hetrl.plan import Axis, Plan  # noqa: E402
from hetrl.testing.models import random_decisions  # noqa: E402
from tests.partition_help import TARGETS, host_space  # noqa: E402

MODELS = ("vgg16", "resnet18", "resnet50", "regnetx_1_6gf", "yolov2", "branchy")
LARGEST_ERROR = 1e-3
SEED = 0


def errors_of(name: str, plans: int, folder: Path) -> list[tuple[Plan, int, float]]:
    """Each plan, its pieces, and its error."""
    source, graph = open_source(str(exported(name, folder)) if name in NETWORKS else name, SEED)
    store = BlobStore(folder / "blobs")
    partitioner = Partitioner(source, graph, store)
    space, inputs = host_space(graph), seeded_inputs(graph, SEED)
    reference = reference_outputs(source, inputs)
    found = []
    for column in random_decisions(space, SEED, plans).T:
        plan = space.plan(column)
        job = partitioner.job(plan, TARGETS)
        executor = Executor(job, store.folder, {piece.engine: find_engine(piece.engine) for piece in job.pieces})
        executor.run(inputs)
        found.append((plan, len(job.pieces), largest_error(executor.outputs, reference)))
        executor.close()
    return found


def kinds_of(plans: list[Plan]) -> str:
    """How many of them do what."""
    axes = [{segment.axis for segment in plan.segments} for plan in plans]
    height, channels = (sum(axis in found for found in axes) for axis in (Axis.HEIGHT, Axis.OUTPUT_CHANNELS))
    both = sum(len({p.split("/")[1] for p in plan.processors}) > 1 for plan in plans)
    overlap = sum(plan.overlap for plan in plans)
    return f"{height} split height, {channels} channels, {overlap} overlap, {both} use both engines"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=50, help="per model")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--folder", type=Path, help="keep the submodels here; by default nothing is kept")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models.split(","):
            begin = time.perf_counter()
            found = errors_of(name, options.plans, options.folder or Path(temporary))
            errors = [error for _, _, error in found]
            pieces = int(np.median([count for _, count, _ in found]))
            took = time.perf_counter() - begin
            print(
                f"{name:14} {len(found)} plans, largest error {max(errors):.2g}; median {pieces} pieces, {took:.0f} s"
            )
            print(f"{'':14} {kinds_of([plan for plan, _, _ in found])}", flush=True)
            failed |= max(errors) > LARGEST_ERROR
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
