"""A plan as one `.param` file, and that ncnn runs it on both processors to the same result."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from hetrl.compression import Compression
from hetrl.device_bridge.runner.engines.ncnn import ENGINE
from hetrl.errors import PlanError
from hetrl.graph import OperatorGraph
from hetrl.graph.reader import graph_from_model
from hetrl.partition.ncnn import Unconvertible, to_ncnn
from hetrl.partition.ncnn_plan import plan_param
from hetrl.plan import Axis, Cap, Part, Plan, Segment
from hetrl.plan_check import model_ref
from hetrl.zoo import resolve_model
from hetrl.zoo.networks import blueprint
from tests.ncnn_help import model as build
from tests.ncnn_help import piece, run_onnx
from tests.tiny_models import save_tiny_cnn

CPU, GPU = "cpu/ncnn/fp16", "gpu/ncnn/fp16"


def _plan(graph: OperatorGraph, *processors: str, engine: str = "ncnn") -> Plan:
    """Groups dealt out in turn, each a segment of its own."""
    segments = tuple(
        Segment(nodes=graph.group_node_ids(g), parts=(Part(processors[g % len(processors)]),))
        for g in range(len(graph.groups))
    )
    return Plan(model=model_ref(graph), device="d1", engines=(engine,), segments=segments)


def _masks(param: str) -> dict[str, int]:
    """Layer name -> its mask."""
    found = {}
    for line in param.splitlines()[2:]:
        words = line.split()
        found[words[1]] = next((int(w[3:]) for w in words if w.startswith("31=")), 0)
    return found


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[onnx.ModelProto, OperatorGraph]:
    path = save_tiny_cnn(tmp_path / "tiny.onnx")
    return onnx.load(path), resolve_model(path)


def test_layers_of_the_cpu_keep_off_vulkan(tiny: tuple[onnx.ModelProto, OperatorGraph]) -> None:
    model, graph = tiny
    made = plan_param(model, _plan(graph, CPU, GPU), graph)
    masks = _masks(made.param)
    assert made.shape == (16, 16, 3) and made.uses_gpu
    assert masks["relu1"] == 16 and masks["relu2"] == 0
    assert [group.outputs[0] for group in graph.groups] == ["relu1", "relu2", "pool", "logits"]
    assert masks["pool@row"] == 16 and masks["logits"] == 0
    alone = plan_param(model, _plan(graph, GPU), graph)
    assert not any(_masks(alone.param).values())
    assert not plan_param(model, _plan(graph, CPU), graph).uses_gpu
    exact = plan_param(model, _plan(graph, "cpu/ncnn/fp32", "gpu/ncnn/fp32"), graph)
    assert _masks(exact.param)["relu1"] == 19 and _masks(exact.param)["relu2"] == 3


def test_every_layer_of_a_network_follows_its_group() -> None:
    graph = resolve_model("resnet18")
    made = plan_param(blueprint("resnet18").model, _plan(graph, CPU, GPU), graph)
    masks = _masks(made.param)
    group_of = {node: group.index for group in graph.groups for node in graph.group_node_ids(group.index)}
    seen = set()
    for layer, mask in masks.items():
        name = layer.partition("@")[0]
        if name in group_of:  # an Input is of no group
            assert mask == (16 if group_of[name] % 2 == 0 else 0), layer
            seen.add(group_of[name])
    assert seen == {group.index for group in graph.groups}


def test_ncnn_takes_the_text_alone_as_benchncnn_does(tmp_path: Path) -> None:
    import ncnn

    graph = resolve_model("resnet18")
    (tmp_path / "m.param").write_text(plan_param(blueprint("resnet18").model, _plan(graph, CPU), graph).param)
    net = ncnn.Net()
    assert net.load_param(str(tmp_path / "m.param")) == 0
    assert net.load_model(ncnn.DataReaderFromEmpty()) == 0
    extractor = net.create_extractor()
    assert extractor.input(net.input_names()[0], ncnn.Mat(224, 224, 3)) == 0
    status, found = extractor.extract(net.output_names()[0])
    assert status == 0 and found.w == 1000


def test_the_weights_fit_and_the_result_is_that_of_the_model(tmp_path: Path) -> None:
    import ncnn

    if not ncnn.get_gpu_count():
        pytest.skip("no Vulkan device: install mesa-vulkan-drivers")
    model = blueprint("resnet18").with_weights(0)
    graph = resolve_model("resnet18")
    (tmp_path / "m.param").write_text(plan_param(model, _plan(graph, CPU, GPU, GPU), graph).param)
    (tmp_path / "m.bin").write_bytes(to_ncnn(model).bin)
    x = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    y = np.zeros((1, 1000), np.float32)
    reads, writes = [graph.inputs[0]], [graph.outputs[0]]
    wanted = run_onnx(model, {reads[0]: x})[0]
    session = ENGINE.load(piece(("m.param", "m.bin"), reads, writes, 0), tmp_path, [x], [y])
    session.run()
    session.close()
    assert np.abs(y - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_what_one_model_cannot_do(tiny: tuple[onnx.ModelProto, OperatorGraph]) -> None:
    model, graph = tiny
    plan = _plan(graph, CPU)
    first = msgspec.structs.replace(plan.segments[0], parts=(Part(GPU, 50), Part(CPU, 50)), axis=Axis.OUTPUT_CHANNELS)
    wrong = {
        "cannot share": msgspec.structs.replace(plan, segments=(first, *plan.segments[1:])),
        "compressed": msgspec.structs.replace(plan, compression=Compression(0.2)),
        "no caps": msgspec.structs.replace(plan, caps=(Cap(CPU, 0.5),)),
        "is not ncnn": _plan(graph, "cpu/tflite/fp32", engine="tflite"),
    }
    for words, bad in wrong.items():
        with pytest.raises(PlanError, match=words):
            plan_param(model, bad, graph)


def test_a_model_without_an_image_is_refused() -> None:
    made = build([helper.make_node("Add", ["x", "z"], ["y"])], {"x": (1, 3, 4, 4), "z": (1, 3, 4, 4)}, ["y"])
    graph = graph_from_model(made, name="two")
    with pytest.raises(Unconvertible, match="not one image"):
        plan_param(made, _plan(graph, CPU), graph)
