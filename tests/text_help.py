"""Small networks, plans of them by hand, and bundles in formats that are text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hetrl.condition import Condition
from hetrl.device_bridge.spec import DeviceSpec, load_spec
from hetrl.export import band, codl, mace, mnn, tflite
from hetrl.export.base import Check, Claims, Exporter, Order, Wish
from hetrl.export.bundle import Bundle, Refused, open_bundle
from hetrl.export.writing import Said, write_bundle
from hetrl.graph import OperatorGraph
from hetrl.graph.reader import graph_from_model
from hetrl.plan import Axis, Memory, Part, Plan, Segment
from hetrl.plan_check import model_ref

D1 = load_spec("d1")
ALL = (codl.EXPORTER, mace.EXPORTER, band.EXPORTER, mnn.EXPORTER, tflite.EXPORTER)
CPU, GPU = "cpu/mace/fp32", "gpu/mace/fp32"
LITE_CPU, LITE_GPU, LITE_DSP = "cpu/tflite/fp32", "gpu/tflite/fp16", "dsp/tflite/int8"
Layer = tuple[str, list[str], str]  # operator type, operands, result
Place = tuple[Axis, tuple[Part, ...]]

BRANCHES: list[Layer] = [
    ("Conv", ["data", "w_a"], "a"),
    ("Conv", ["data", "w_down"], "down"),
    ("Conv", ["a", "w_b"], "b"),
    ("MaxPool", ["b"], "pool"),
    ("MaxPool", ["down"], "side"),
    ("Add", ["pool", "side"], "sum"),
    ("Conv", ["sum", "w_depthwise"], "deep"),
    ("ConvTranspose", ["deep", "w_c"], "up"),
]
BRANCH_WEIGHTS = {
    "w_a": (4, 4, 3, 3),
    "w_down": (4, 4, 3, 3),
    "w_b": (4, 4, 3, 3),
    "w_depthwise": (4, 1, 3, 3),
    "w_c": (4, 4, 3, 3),
}


def net(layers: Sequence[Layer], outputs: Sequence[str], weights: dict[str, tuple[int, ...]]) -> OperatorGraph:
    """Layers with 3x3 kernels, stride 1; input `data` 1x4x8x8, weights of ones by their shapes."""
    nodes = []
    for kind, operands, result in layers:
        window = kind in ("Conv", "ConvTranspose", "MaxPool")
        settings = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]} if window else {}
        settings |= {"group": 4} if operands[-1] == "w_depthwise" else {}
        settings |= {"dilations": [2, 2], "pads": [2, 2, 2, 2]} if operands[-1] == "w_dilated" else {}
        settings |= {"transB": 1} if kind == "Gemm" else {}
        nodes.append(helper.make_node(kind, operands, [result], **settings))
    constants = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    constants.append(numpy_helper.from_array(np.array([1, -1]), "flat_shape"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, (1, 4, 8, 8))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return graph_from_model(onnx.shape_inference.infer_shapes(model), name="net")


def placed(graph: OperatorGraph, places: Mapping[str, Place], otherwise: Place, **settings: object) -> Plan:
    """A plan by the first node of fusion groups; neighbours alone on the same processor are one segment."""
    assert places.keys() <= {graph.group_node_ids(group.index)[0] for group in graph.groups}
    segments: list[Segment] = []
    for group in graph.groups:
        nodes = graph.group_node_ids(group.index)
        axis, parts = places.get(nodes[0], otherwise)
        memory = Memory.IMAGE if parts[0].processor == GPU else None
        if segments and axis is Axis.NONE and segments[-1].parts == parts:
            nodes = (*segments.pop().nodes, *nodes)
        segments.append(Segment(nodes=nodes, parts=parts, axis=axis, memory=memory))
    engines = tuple(dict.fromkeys(part.processor.split("/")[1] for segment in segments for part in segment.parts))
    return Plan(model=model_ref(graph), device="d1", engines=engines, segments=tuple(segments), **settings)


def alone(processor: str) -> Place:
    return Axis.NONE, (Part(processor),)


def shared(axis: Axis, gpu_pct: int) -> Place:
    return axis, (Part(GPU, gpu_pct), Part(CPU, 100 - gpu_pct))


def written(exporter: Exporter, plan: Plan, graph: OperatorGraph, out: Path, spec: DeviceSpec | None = D1) -> Path:
    assert exporter.claims(plan, graph).refused == ()
    write_bundle(exporter, Order(plan, graph, spec), Said(None), out)
    return out


def checks(exporter: Exporter, folder: Path) -> tuple[Check, ...]:
    with open_bundle(folder) as bundle:
        return tuple(exporter.text_checks(bundle))


def changed(exporter: Exporter, folder: Path, file: str, old: str, new: str) -> bool:
    """Whether a bundle passes with a file changed by somebody who seals it again."""
    with open_bundle(folder) as bundle:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))
        try:
            return all(check.ok is not False for check in exporter.text_checks(Bundle(folder, bundle.manifest)))
        except Refused:
            return False
        finally:
            (folder / file).write_text(text)


def reasons(claims: Claims) -> str:
    return "; ".join(limit.reason for limit in claims.refused)


def lowered(exporter: Exporter, plan: Plan, graph: OperatorGraph) -> Plan:
    return exporter.lowered(Wish(plan, graph, D1, Condition()))
