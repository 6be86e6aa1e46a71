"""What running a plan costs beside its engine: one piece, a cut, and an operator that two cores share.

    python experiments/bench_executor.py            resnet18 and single convolutions, on this computer
    python experiments/bench_executor.py --rounds 60

Everything is measured in turns (`runner.sampling`), so that a busy machine slows both sides of a ratio alike; medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime as ort

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hetrl.device_bridge.blobs import BlobStore  # noqa: E402
from hetrl.device_bridge.runner.engines import find_engine  # noqa: E402
from hetrl.device_bridge.runner.executor import Executor  # noqa: E402
from hetrl.device_bridge.runner.sampling import Sampling, sample  # noqa: E402
from hetrl.graph import OperatorGraph  # noqa: E402
from hetrl.graph.reader import load_graph  # noqa: E402
from hetrl.partition import FileSource, Partitioner, Target, open_source, seeded_inputs  # noqa: E402
from hetrl.plan import Axis, Part, Plan, Segment  # noqa: E402
from hetrl.plan_check import model_ref  # noqa: E402
from hetrl.zoo.builder import Builder  # noqa: E402

ALL, TWIN, FIRST, SECOND = (f"{unit}/onnxruntime/fp32" for unit in ("cpu", "twin", "cpu0", "cpu1"))
TARGETS = {ALL: Target((0, 1)), TWIN: Target((0, 1)), FIRST: Target((0,)), SECOND: Target((1,))}
CONVOLUTIONS = ((64, 64, 112), (128, 128, 56), (256, 256, 28), (512, 512, 14))  # channels in and out, rows


def plan(graph: OperatorGraph, placed: list[tuple[range, str | tuple[str, str]]], axis: Axis = Axis.NONE) -> Plan:
    """Runs of fusion groups and where each goes: one processor, or two that share it evenly."""
    segments = []
    for groups, where in placed:
        parts = (Part(where),) if isinstance(where, str) else tuple(Part(name, 50) for name in where)
        nodes = tuple(n for g in groups for n in graph.group_node_ids(g))
        segments.append(Segment(nodes=nodes, parts=parts, axis=axis if len(parts) > 1 else Axis.NONE))
    return Plan(model=model_ref(graph), device="host", engines=("onnxruntime",), segments=tuple(segments))


def medians_ms(runs: list[Callable[[], object]], rounds: int) -> list[float]:
    """Of each run, measured in turns."""
    sampling = Sampling(min_repeats=rounds, max_repeats=rounds, max_s=600, foreign_share=1.0, settle_runs=1)
    for run in runs:
        for _ in range(3):
            run()
    return [found.median_ms for found in sample(runs, sampling, lambda: perf_counter() * 1000)]


def executor_of(partitioner: Partitioner, what: Plan) -> Executor:
    job = partitioner.job(what, TARGETS)
    return Executor(job, partitioner.store.folder, {piece.engine: find_engine(piece.engine) for piece in job.pieces})


def one_piece(folder: Path, model: str, rounds: int) -> tuple[float, float]:
    """ms of the bare engine on the whole model, and of the executor with a plan of one segment.

    Neither's threads go on spinning when they are done, which would slow down the other one.
    """
    source, graph = open_source(model, 0)
    partitioner = Partitioner(source, graph, BlobStore(folder / "blobs"))
    inputs = seeded_inputs(graph, 0)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.force_spinning_stop", "1")
    bare = ort.InferenceSession(str(source.save(folder)), options, providers=["CPUExecutionProvider"])
    whole = executor_of(partitioner, plan(graph, [(range(len(graph.groups)), ALL)]))
    run = medians_ms([lambda: bare.run(None, inputs), lambda: whole.run(inputs)], rounds)
    return run[0], run[1]


def cuts(folder: Path, model: str, rounds: int) -> tuple[float, list[float]]:
    """ms of the plan of one segment, and what a cut behind each fusion group costs on top."""
    source, graph = open_source(model, 0)
    partitioner = Partitioner(source, graph, BlobStore(folder / "blobs"))
    inputs, n = seeded_inputs(graph, 0), len(graph.groups)
    whole = executor_of(partitioner, plan(graph, [(range(n), ALL)]))
    costs, base = [], 0.0
    for at in range(1, n):
        cut = executor_of(partitioner, plan(graph, [(range(at), ALL), (range(at, n), TWIN)]))
        base, both = medians_ms([lambda: whole.run(inputs), lambda cut=cut: cut.run(inputs)], rounds)
        costs.append(both - base)
        cut.close()
    return base, costs


def shared_convolution(folder: Path, shape: tuple[int, int, int], axis: Axis, rounds: int) -> float:
    """How many times as fast two cores are as one."""
    channels_in, channels_out, rows = shape
    net = Builder("conv")
    net.conv(net.input("x", (1, channels_in, rows, rows)), "y", channels_out, 3)
    path = folder / f"conv{channels_in}.onnx"
    net.finish("y").save(path, 0)
    graph = load_graph(path)
    partitioner = Partitioner(FileSource(path), graph, BlobStore(folder / "blobs"))
    inputs = seeded_inputs(graph, 0)
    alone = executor_of(partitioner, plan(graph, [(range(1), FIRST)]))
    shared = executor_of(partitioner, plan(graph, [(range(1), (SECOND, FIRST))], axis))
    one, two = medians_ms([lambda: alone.run(inputs), lambda: shared.run(inputs)], rounds)
    return one / two


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare, job = one_piece(folder, options.model, 2 * options.rounds)
        print(f"one piece: {job:.2f} ms, {bare:.2f} ms without the executor: {100 * (job / bare - 1):+.1f} % (2 %)")
        base, costs = cuts(folder, options.model, options.rounds)
        worst, middle = max(costs), statistics.median(costs)
        print(f"a cut of {base:.1f} ms: median {middle:.2f} ms (1 ms), largest {worst:.2f} ms (2 ms)")
        for shape in CONVOLUTIONS:
            found = [shared_convolution(folder, shape, a, options.rounds) for a in (Axis.OUTPUT_CHANNELS, Axis.HEIGHT)]
            ratios = np.round(found, 2)
            print(
                f"convolution {shape}: by channels {ratios[0]}, by height {ratios[1]} times one core (1.6)", flush=True
            )


if __name__ == "__main__":
    main()
