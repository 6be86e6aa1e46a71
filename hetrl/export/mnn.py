"""MNN: a path for each segment of the plan, on one backend each.

Keys are those of MNN's session configuration (alibaba/MNN, docs/pymnn/Interpreter.md; `ScheduleConfig` in
include/MNN/Interpreter.hpp). A path is given by tensors here, `mode` `Tensor`: by operators, MNN silently runs nothing
where its converter has renamed one. `numThread` of an OpenCL path is its mode: 4 tunes it, 64 keeps tensors in buffers,
128 in images (`MNNGpuMode` in include/MNN/MNNForwardType.h). A backend that is not there is replaced by the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from hetrl.export.base import Carries, Check, Claims, Exporter, Order, unit_of
from hetrl.export.bundle import Bundle
from hetrl.export.mace import net_name
from hetrl.export.texts import one_each, read_json, threads, write_json
from hetrl.graph import OperatorGraph
from hetrl.plan import Memory, Plan

FILE = "mnn.json"
Backend = Literal["CPU", "OPENCL", "NN"]
Precision = Literal["high", "low", "Low_BF16"]
_BACKENDS: dict[str, Backend] = {"cpu": "CPU", "gpu": "OPENCL", "npu": "NN"}  # NN is Android's NNAPI
_PRECISIONS: dict[str, Precision] = {"fp32": "high", "fp16": "low", "bf16": "Low_BF16"}
_DROPPED = frozenset({"Identity", "Dropout"})
_TUNED, _MEMORY = 4, {None: 0, Memory.BUFFER: 64, Memory.IMAGE: 128}


class MnnPath(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """One session's configuration, in MNN's own keys; it takes tensors that earlier paths made, and the model's."""

    backend: Backend
    precision: Precision
    num_thread: int
    mode: Literal["Tensor"] = "Tensor"
    input_paths: tuple[str, ...]
    output_paths: tuple[str, ...]


class Paths(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file: the paths, in the order in which they run, and which of the plan's segments each of them is."""

    schema: Literal["hetrl.mnn/1"] = "hetrl.mnn/1"
    model: str
    segments: tuple[int, ...]
    paths: tuple[MnnPath, ...]


class Mnn(Exporter):
    """See the module."""

    name = "mnn"
    summary = "MNN session paths: each segment on one backend"
    carries = Carries(units=frozenset(_BACKENDS), precisions=frozenset(_PRECISIONS), memory=True, compression=False)
    needs_weights = False
    engines = frozenset({"mnn"})

    def claims(self, plan: Plan, graph: OperatorGraph) -> Claims:
        found = super().claims(plan, graph)
        return Claims((*found.refused, *one_each(plan)), found.left_out)

    def write(self, order: Order, folder: Path) -> None:
        model = f"{net_name(order.plan.model.name)}.mnn"
        paths = paths_of(order.plan, order.graph, threads(order.spec, order.plan.processors))
        write_json(folder / FILE, Paths(model=model, segments=tuple(paths), paths=tuple(paths.values())))

    def readme(self, order: Order) -> str:
        return (
            f"Convert the model with MNNConvert, and give each of the paths in `{FILE}` a module of its own.\n"
            "They run in turn; what one makes is there for those behind it. In Python, MNN wants tuples for lists:\n\n"
            "    config = {key: tuple(value) if isinstance(value, list) else value for key, value in path.items()}\n"
            "    runtime = MNN.nn.create_runtime_manager((config,))\n"
            "    module = MNN.nn.load_module_from_file(\n"
            '        model, path["inputPaths"], path["outputPaths"], runtime_manager=runtime)\n'
            '    made.update(zip(path["outputPaths"], module.onForward([made[name] for name in path["inputPaths"]])))\n'
        )

    def text_checks(self, bundle: Bundle) -> Iterator[Check]:
        file, manifest = read_json(bundle, FILE, Paths), bundle.manifest
        segments = manifest.plan.segments
        wanted = [_backend(segments[n].processors[0]) for n in file.segments if 0 <= n < len(segments)]
        found = [(path.backend, path.precision) for path in file.paths]
        same = found == wanted and list(file.segments) == sorted(set(file.segments))
        yield Check("placement", same, f"{len(found)} paths of {len(segments)} segments, on the plan's processors")
        made = {tensor.name for tensor in manifest.inputs}
        missing: list[str] = []
        for path in file.paths:
            missing += [name for name in path.input_paths if name not in made]
            made |= set(path.output_paths)
        missing += [tensor.name for tensor in manifest.outputs if tensor.name not in made]
        detail = f"{len(made)} tensors, each made before it is read"
        yield Check("tensors", not missing, f"nothing makes {missing[0]!r} before it is read" if missing else detail)


def paths_of(plan: Plan, graph: OperatorGraph, cpu_threads: int) -> dict[int, MnnPath]:
    """A path for each segment that has work: what it reads of others, and what others read of it."""
    same = _same_tensors(graph)
    nodes = [[graph.nodes[graph.node_index[node]] for node in segment.nodes] for segment in plan.segments]
    makes = [{t: None for node in held for t in node.outputs if t not in same} for held in nodes]
    reads = [
        {same.get(t, t): None for node in held for t in node.inputs if node.outputs[0] not in same} for held in nodes
    ]
    paths = {}
    for number, segment in enumerate(plan.segments):
        backend, precision = _backend(segment.processors[0])
        elsewhere = {tensor for other, tensors in enumerate(reads) if other != number for tensor in tensors}
        outputs = tuple(tensor for tensor in makes[number] if tensor in elsewhere or tensor in graph.outputs)
        if outputs:
            paths[number] = MnnPath(
                backend=backend,
                precision=precision,
                num_thread={"CPU": cpu_threads, "OPENCL": _TUNED + _MEMORY[segment.memory], "NN": 1}[backend],
                input_paths=tuple(tensor for tensor in reads[number] if tensor not in makes[number]),
                output_paths=outputs,
            )
    return paths


def _same_tensors(graph: OperatorGraph) -> dict[str, str]:
    """Results of operators that MNN's converter drops, and the tensors that are there instead."""
    same: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type in _DROPPED and node.outputs[0] not in graph.outputs:
            same[node.outputs[0]] = same.get(node.inputs[0], node.inputs[0])
    return same


def _backend(processor: str) -> tuple[Backend, Precision]:
    return _BACKENDS[unit_of(processor)], _PRECISIONS[processor.split("/")[2]]


EXPORTER = Mnn()
