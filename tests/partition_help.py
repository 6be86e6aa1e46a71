"""A computer as a device, plans of it by hand, and what a plan computes there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx

from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.quantity import Quantity
from hetrl.device_bridge.runner.engines import find_engine
from hetrl.device_bridge.runner.executor import Executor
from hetrl.device_bridge.runner.job import Job, job_from_json, job_to_json
from hetrl.device_bridge.spec import DeviceSpec, Engine, Link, Processor, load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.space import PlanSpace
from hetrl.graph import OperatorGraph
from hetrl.graph.reader import load_graph
from hetrl.graph.single import Array
from hetrl.objective import Objective
from hetrl.partition import FileSource, Partitioner, Target, reference_outputs, seeded_inputs
from hetrl.plan import Axis, Part, Plan, Segment
from hetrl.plan_check import model_ref
from hetrl.testing.models import random_decisions

CPU, CPU0, CPU1 = (f"{unit}/onnxruntime/fp32" for unit in ("cpu", "cpu0", "cpu1"))
OPENVINO = "cpu/openvino/fp32"
TARGETS = {CPU: Target((0, 1)), CPU0: Target((0,)), CPU1: Target((1,)), OPENVINO: Target((0, 1))}
Where = str | Mapping[str, int]
"""A processor, or shares by processor."""


def host_spec() -> DeviceSpec:
    """All cores, two halves, and another engine on all cores; the halves can share an operator."""
    phone = load_spec("d1")
    like = phone.engine("mace")
    cost = next(p.cost for p in like.processors if p.unit == "cpu")
    watts = Quantity(1.0, "assumed")
    processors = []
    for name in (CPU0, CPU1, CPU, OPENVINO):
        unit, engine, precision = name.split("/")
        cores = TARGETS[name].cores
        processors.append(
            Processor(unit=unit, engine=engine, precision=precision, cost=cost, active_w=watts, cores=cores)
        )
    shared = msgspec.structs.asdict(like.links[0])
    ends = [(CPU1, True), (CPU, False), (OPENVINO, False)]
    links = tuple(Link(**{**shared, "host": CPU0, "accelerator": name, "splits": splits}) for name, splits in ends)
    engine_set = Engine(processors=tuple(processors), links=links)
    return DeviceSpec(
        schema=phone.schema,
        id="this-computer",
        phone="this computer",
        soc="any",
        ram_gb=phone.ram_gb,
        idle_w=phone.idle_w,
        default_engine="host",
        engines={"host": engine_set},
    )


def host_space(graph: OperatorGraph) -> PlanSpace:
    """The plans of a model on that computer that leave it as it is."""
    return PlanSpace(SurrogateDevice(host_spec(), graph), Objective(max_accuracy_drop_pct=0.0))


def plan_by_hand(
    graph: OperatorGraph,
    placed: Iterable[tuple[Sequence[int], Where]],
    axis: Axis = Axis.OUTPUT_CHANNELS,
    *,
    overlap: bool = False,
) -> Plan:
    """Fusion groups and where each run of them goes; what is split goes along `axis`."""
    segments = []
    for groups, where in placed:
        shares = {where: 100} if isinstance(where, str) else where
        segments.append(
            Segment(
                nodes=tuple(node for group in groups for node in graph.group_node_ids(group)),
                parts=tuple(Part(*item) for item in shares.items()),
                axis=axis if len(shares) > 1 else Axis.NONE,
            )
        )
    engines = ("onnxruntime", "openvino")
    ref = model_ref(graph)
    return Plan(model=ref, device="host", engines=engines, segments=tuple(segments), overlap=overlap)


def split_everything(graph: OperatorGraph, axis: Axis, share_pct: int, elsewhere: str = CPU0) -> Plan:
    """Every fusion group that can be is split by itself, as long as both parts work."""
    placed: list[tuple[Sequence[int], Where]] = []
    for group in graph.groups:
        shape = graph.tensor_by_name[group.outputs[0]].shape
        able = group.splits_height if axis is Axis.HEIGHT else group.splits_channels and min(shape[1], shape[-1]) > 0
        both = {CPU1: share_pct, CPU0: 100 - share_pct}
        placed.append(([group.index], both if able else elsewhere))
    return plan_by_hand(graph, placed, axis)


def execute(job: Job, store: BlobStore, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a job, sent once through JSON, after two runs."""
    engines = {piece.engine: find_engine(piece.engine) for piece in job.pieces}
    executor = Executor(job_from_json(job_to_json(job)), store.folder, engines)
    try:
        executor.run(inputs)
        executor.run(inputs)
        return {name: array.copy() for name, array in executor.outputs.items()}
    finally:
        executor.close()


def save_model(path: Path, nodes: Sequence[onnx.NodeProto], shape: Sequence[int], **weights: np.ndarray) -> Path:
    """An ONNX file that reads `x` and whose output is what the last node makes."""
    graph = onnx.helper.make_graph(
        nodes,
        path.stem,
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name=nodes[-1].output[0])],
        [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    model.graph.output[0].CopyFrom(graph.output[0])
    onnx.save(model, path)
    return path


def partitioner_of(path: Path, seeded_weights: int | None = None) -> Partitioner:
    """Of an ONNX file, with its blobs in a folder beside it."""
    return Partitioner(FileSource(path, seeded_weights), load_graph(path), BlobStore(path.parent / "blobs"))


def cut_at_random(path: Path, folder: Path) -> tuple[Partitioner, list[Plan], dict[str, Array], dict[str, Array]]:
    """A model's file and plans of this computer, the least shared first; inputs, and what the whole model makes."""
    graph, source = load_graph(path), FileSource(path)
    space = host_space(graph)
    inputs = seeded_inputs(graph, 0)
    plans = sorted((space.plan(column) for column in random_decisions(space, 0, 40).T), key=lambda plan: plan.splits)
    partitioner = Partitioner(source, graph, BlobStore(folder / "blobs"))
    return partitioner, plans, inputs, reference_outputs(source, inputs)
