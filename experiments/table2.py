"""The study's Table 2 once more: compression, sharing and fusion of ResNet-18, predicted on d1 and measured here.

    python experiments/table2.py            print docs/table2.md
    python experiments/table2.py --write    write it

On d1 the rows are hand policies' under `mace` (`docs/study.md` has more engine sets, and what would have to be true of
the study's phone). Here the baseline is one core of ONNX Runtime without graph optimizations; fusion is with them. CoDL
shares every convolution's output channels evenly between two cores, whose engines fuse, so its rows are held against
the fused baseline, and against the unfused one where the row says fusion. All rows of this computer are measured in
turns; weights are seeded, so accuracy is what the study's own points predict.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bench_executor as bench  # noqa: E402
import msgspec  # noqa: E402
from study_tables import METHODS, Method, facts, kept_weights, table_2_ms  # noqa: E402

from hetrl.accuracy import PREDICTED_DROPS  # noqa: E402
from hetrl.compress.planned import compressed_graph  # noqa: E402
from hetrl.compress.variant import compressed_source  # noqa: E402
from hetrl.compression import NO_COMPRESSION, Compression  # noqa: E402
from hetrl.device_bridge.blobs import BlobStore  # noqa: E402
from hetrl.graph import OperatorGraph, OpKind  # noqa: E402
from hetrl.partition import Partitioner, open_source, seeded_inputs  # noqa: E402
from hetrl.plan import Axis  # noqa: E402

MODEL, CHANNELS = "resnet18", 16


@dataclass(frozen=True)
class Row:
    """One method; `here_ms` measured, `base_ms` what it is held against."""

    method: Method
    size_mb: float
    drop_pct: float
    d1_ms: float | None
    here_ms: float
    base_ms: float


def compression_of(method: Method, multiple: int) -> Compression:
    found = Compression.of((0.3 if method.pruned else 0.0,), multiple)
    return msgspec.structs.replace(found, low_rank=round(kept_weights(), 3)) if method.low_rank else found


class Here:
    """Runs of this computer, ready to be measured in turns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._source, self.graph = open_source(MODEL, 0)
        self._inputs = seeded_inputs(self.graph, 0)

    def run_of(self, method: Method) -> Callable[[], object]:
        one = compression_of(method, CHANNELS)
        source, graph = compressed_source(self._source, self.graph, one), compressed_graph(self.graph, one)
        if method.codl:
            partitioner = Partitioner(source, graph, BlobStore(self._folder / "blobs"), one)
            shared = msgspec.structs.replace(self._shared(graph), compression=one)
            executor = bench.executor_of(partitioner, shared)
            return lambda: executor.run(self._inputs)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        if not method.fused:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        folder = self._folder / method.name
        folder.mkdir()
        session = ort.InferenceSession(str(source.save(folder)), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, self._inputs)

    @staticmethod
    def _shared(graph: OperatorGraph):
        """Convolutions that can be shared are, by output channels."""
        placed = []
        for group in graph.groups:
            able = group.splits_channels and graph.group_geometry(group.index).kind is OpKind.CONV
            where = (bench.SECOND, bench.FIRST) if able else bench.FIRST
            placed.append((range(group.index, group.index + 1), where))
        return bench.plan(graph, placed, Axis.OUTPUT_CHANNELS)


def rows(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        here = Here(Path(name))
        times = bench.medians_ms([here.run_of(method) for method in METHODS], rounds)
        took = dict(zip((method.name for method in METHODS), times, strict=True))
        found = []
        for method in METHODS:
            one = compression_of(method, 4)
            base = took["fusion" if method.codl and not method.fused else "baseline"]
            size = compressed_graph(here.graph, one).weight_bytes / 1e6
            drop = PREDICTED_DROPS.drop_pct(one if one.changes else NO_COMPRESSION)
            found.append(Row(method, size, drop, table_2_ms(method, "mace"), took[method.name], base))
        return found


def document(found: list[Row]) -> str:
    published = {row.method: row for row in facts().table2}
    base = published["baseline"].latency_ms
    d1_base = found[0].d1_ms or 0.0
    lines = [
        "# Table 2 of the study, on d1 and on this computer",
        "",
        *(__doc__ or "").split("\n\n", 2)[2].strip().splitlines(),
        "",
        "Made by `python experiments/table2.py --write`.",
        "",
        "| method | loss, points (predicted) | model, MB | published factor | d1, ms (predicted) | factor | here, ms "
        "(measured) | factor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        known = published[row.method.name]
        d1 = "" if row.d1_ms is None else f"{row.d1_ms:.1f} | {row.d1_ms / d1_base:.2f}"
        lines.append(
            f"| {row.method.name} | {row.drop_pct:.2f} | {row.size_mb:.1f} (study: {known.memory_mb}) | "
            f"{known.latency_ms / base:.2f} | {d1 or ' | '} | {row.here_ms:.1f} | {row.here_ms / row.base_ms:.2f} |"
        )
    names = ["baseline", "low_rank", "codl", "pruning", "fusion"]
    for where, value in (("d1", {r.method.name: (r.d1_ms or 0.0) / d1_base for r in found}),
                         ("this computer", {r.method.name: r.here_ms / r.base_ms for r in found})):  # fmt: skip
        order = sorted(names, key=lambda name: -value[name])
        lines += ["", f"Order on {where}, slowest first: {' > '.join(order)} (the study: {' > '.join(names)})."]
    lines += [
        "",
        "Where that differs from the study: low rank is the slowest of its single methods and the fastest",
        "here, since it leaves a third of the work, which the study's phone would have to lose again in its",
        "added kernels; fusion is its fastest and the slowest here, since kernels that vanish would have to",
        "cost that phone 1.7 ms each. Sharing before pruning, and combinations before single methods, are as",
        "published. `docs/study.md` names what is inconsistent in the table itself.",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text = document(rows(options.rounds))
    print(text)
    if options.write:
        (ROOT / "docs" / "table2.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
