"""Qualcomm's own answer: which operators of a model its HTP backend takes.

The plugin `onnxruntime-qnn` (extra `qnn`) brings the HTP backend for x86, where it checks and runs graphs without a
phone. It says what is supported, and nothing about time. It is asked in a process of its own: the backend prints as it
likes, gives its reasons only in the log, and a crash of it must not be one of hetrl.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import msgspec

from hetrl.errors import DeviceFailed, MissingExtra, ModelError
from hetrl.graph.model import OperatorGraph

EXTRA = "qnn"
TIMEOUT_S = 900.0
_NUMBER = re.compile(r"^hetrl_(\d+)_")  # what nodes are called on the way; fusions and layouts append to it
_NODE = re.compile(r"Operator type: (\S+) Node name: (\S*)")
_PREPARES = "Failed to finalize QNN graph"  # after all operators were judged
_REASON = re.compile(r"REASON : (.*)")


class NodeSupport(msgspec.Struct, frozen=True):
    """One operator; `reason` is empty where it is taken, or where the backend gives none."""

    node: str
    op_type: str
    taken: bool
    reason: str = ""


class NpuSupport(msgspec.Struct, frozen=True):
    """The backend's answer for one model, in the graph's order.

    :param problem: what went wrong when the backend prepared the operators that it had taken; empty if nothing.
    """

    model: str
    backend: str
    nodes: tuple[NodeSupport, ...]
    problem: str = ""

    @property
    def refused(self) -> tuple[NodeSupport, ...]:
        return tuple(node for node in self.nodes if not node.taken)

    @property
    def unsupported(self) -> tuple[str, ...]:
        """Operator types that are refused wherever they occur."""
        taken = {node.op_type for node in self.nodes if node.taken}
        return tuple(sorted({node.op_type for node in self.refused} - taken))

    @property
    def sometimes(self) -> tuple[str, ...]:
        """Operator types that are refused in places only, which a device file cannot say."""
        return tuple(sorted({node.op_type for node in self.refused} - set(self.unsupported)))


class Answer(msgspec.Struct, frozen=True):
    """What `qnn_worker` prints: names of the nodes that stay on the CPU, or why there is no answer."""

    on_cpu: tuple[str, ...] = ()
    error: str = ""


def npu_support(name_or_path: str, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> NpuSupport:
    """Ask the HTP backend about a built-in network (with seeded weights) or an ONNX file.

    :raises MissingExtra: `onnxruntime-qnn` is not installed.
    :raises UnknownName, ModelError, UnresolvedShape: the model; also where its weights are missing.
    :raises DeviceFailed: the backend gives no answer. One that has judged every operator and then fails to prepare the
        whole (a large network in its emulated memory) has answered.
    """
    from hetrl.zoo.resolve import resolve_model

    if importlib.util.find_spec("onnxruntime_qnn") is None:
        raise MissingExtra("profile --npu-support", EXTRA)
    graph = resolve_model(name_or_path, input_shapes)
    with tempfile.TemporaryDirectory(prefix="hetrl-") as folder:
        file, weights, ids = _prepared(name_or_path, graph, Path(folder))
        answer, log = _ask(file, weights)
    why = reasons(log)
    if answer.error and _PREPARES in answer.error:
        answer = Answer(tuple(why), answer.error)
    elif answer.error:
        raise DeviceFailed(f"the HTP backend gives no answer for {graph.name}: {answer.error}")
    backend = f"HTP reference backend of onnxruntime-qnn {metadata.version('onnxruntime-qnn')}"
    return NpuSupport(graph.name, backend, _nodes(graph, ids, answer, why), answer.error)


def _prepared(name: str, graph: OperatorGraph, folder: Path) -> tuple[Path, Path, dict[int, str]]:
    """The model with numbered nodes and fixed input sizes; where its weights are; the graph's node by number."""
    from onnx import TensorProto, inliner

    from hetrl.graph.protofile import external_location, read_model
    from hetrl.zoo.catalog import catalog

    file, weights = folder / "model.onnx", Path(name).parent
    if name in (entry.name for entry in catalog()):
        from hetrl.zoo.networks import blueprint

        blueprint(name).save(file, seed=0)
        model, weights = read_model(file), folder
    else:
        model = read_model(Path(name))
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and external_location(tensor, weights) is None:
            raise ModelError(
                f"{name} lacks the weights {tensor.name!r}", "the HTP backend needs them next to the model"
            )
    if model.functions:
        model = inliner.inline_local_functions(model)
    ids: dict[int, str] = {}
    known = {node.id for node in graph.nodes}
    for number, node in enumerate(model.graph.node):
        node.name = f"hetrl_{number}_"
        ids.update((number, output) for output in node.output if output in known)
    for value in model.graph.input:
        if value.name in graph.inputs:
            for dim, size in zip(value.type.tensor_type.shape.dim, graph.tensor_by_name[value.name].shape, strict=True):
                dim.dim_value = size
    file.write_bytes(model.SerializeToString())
    return file, weights, ids


def _ask(file: Path, weights: Path) -> tuple[Answer, str]:
    command = [sys.executable, "-m", "hetrl.support.qnn_worker", str(file), str(weights.resolve())]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False, cwd=file.parent
        )
    except subprocess.TimeoutExpired:
        return Answer(error=f"it did not finish within {TIMEOUT_S:g} s"), ""
    try:
        return msgspec.json.decode(done.stdout.strip().rpartition("\n")[2], type=Answer), done.stderr
    except msgspec.DecodeError:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1][:200]
        return Answer(error=f"its process ended with {done.returncode}: {last}"), done.stderr


def reasons(log: str) -> dict[str, str]:
    """Node name -> why the backend refused it, from the provider's verbose log; the last word counts."""
    found: dict[str, str] = {}
    names: list[str] = []
    failed = False
    for line in log.splitlines():
        if "Validation FAILED" in line or "Validation PASSED" in line:
            names, failed = [], "FAILED" in line
        elif failed and (node := _NODE.search(line)):
            names.append(node[2])
        elif failed and (why := _REASON.search(line)):
            found.update(dict.fromkeys(names, " ".join(why[1].split())))
            failed = False
    return found


def _nodes(
    graph: OperatorGraph, ids: Mapping[int, str], answer: Answer, why: Mapping[str, str]
) -> tuple[NodeSupport, ...]:
    number = {node: n for n, node in ids.items()}
    on_cpu = {int(match[1]) for name in answer.on_cpu if (match := _NUMBER.match(name))}
    reason = {int(match[1]): text for name, text in why.items() if (match := _NUMBER.match(name))}
    found = []
    for node in graph.nodes:
        here = number.get(node.id)
        taken = here is None or here not in on_cpu
        text = "" if taken or here is None else reason.get(here, "").replace(f"hetrl_{here}_", node.id)
        found.append(NodeSupport(node.id, node.op_type, taken, text))
    return tuple(found)


def by_type(support: NpuSupport) -> list[tuple[str, int, int, str]]:
    """Operator type, how many there are, how many are refused, the most frequent reason; refused ones first."""
    rows = []
    for op_type, total in Counter(node.op_type for node in support.nodes).items():
        refused = [node for node in support.refused if node.op_type == op_type]
        common = Counter(node.reason for node in refused if node.reason).most_common(1)
        rows.append((op_type, total, len(refused), common[0][0] if common else ""))
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def as_json(support: NpuSupport) -> dict[str, object]:
    """What `--json` prints of an answer."""
    return {
        "model": support.model,
        "backend": support.backend,
        "nodes": len(support.nodes),
        "taken": len(support.nodes) - len(support.refused),
        "refused": json.loads(msgspec.json.encode(support.refused)),
        "unsupported": support.unsupported,
        "sometimes": support.sometimes,
        "problem": support.problem,
    }
