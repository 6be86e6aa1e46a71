"""Submodels in ncnn give what ONNX Runtime gives, on the CPU and on a Vulkan device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from hetrl.device_bridge.runner.engines.ncnn import ENGINE, blob_name
from hetrl.partition.ncnn import Unconvertible, to_ncnn
from hetrl.zoo.networks import blueprint
from tests.ncnn_help import Shape, difference, model, piece, run_onnx, write
from tests.torch_models import Inception, MobileNetLike, export

TOLERANCE = 1e-3
IMAGE = (1, 8, 9, 11)
ROW = (1, 24)
Weights = dict[str, Any]


def _vulkan() -> bool:
    import ncnn

    return bool(ncnn.get_gpu_count() > 0)


@pytest.fixture(params=["cpu", "vulkan"])
def device(request: pytest.FixtureRequest) -> int | None:
    if request.param == "cpu":
        return None
    if not _vulkan():
        pytest.skip("no Vulkan device: install mesa-vulkan-drivers")
    return 0


def _random(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def _ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


def one(
    op_type: str, inputs: dict[str, Shape], weights: Weights | None = None, order: str = "", **attributes: Any
) -> onnx.ModelProto:
    """A model of one operator: data inputs, then weights; `order` names the inputs otherwise."""
    names = order.split(",") if order else [*inputs, *(weights or {})]
    return model([helper.make_node(op_type, names, ["y"], **attributes)], inputs, ["y"], weights)


def conv(x: Shape = IMAGE, outputs: int = 12, kernel: Shape = (3, 3), bias: bool = True, **kw: Any) -> onnx.ModelProto:
    weights = {"w": _random(outputs, x[1] // kw.get("group", 1), *kernel)}
    if bias:
        weights["b"] = _random(outputs)
    return one("Conv", {"x": x}, weights, **kw)


def deconv(outputs: int, group: int = 1, **kw: Any) -> onnx.ModelProto:
    weights = {"w": _random(8, outputs // group, 3, 3), "b": _random(outputs)}
    return one("ConvTranspose", {"x": IMAGE}, weights, group=group, **kw)


def group_norm(x: Shape, groups: int, opset: int = 21) -> onnx.ModelProto:
    size = groups if opset < 21 else x[1]
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=groups, epsilon=0.1)
    return model([node], {"x": x}, ["y"], {"s": _random(size), "b": 2 * _random(size)}, opset)


def group_norm_inside() -> onnx.ModelProto:
    """No shape is known behind it but by its own."""
    made = group_norm(IMAGE, 4)
    made.graph.node[0].output[0] = "n"
    made.graph.node.append(helper.make_node("HardSwish", ["n"], ["y"]))
    return made


def gather(indices: Any, axis: int, x: Shape = IMAGE) -> onnx.ModelProto:
    return one("Gather", {"x": x}, {"i": np.array(indices, dtype=np.int64)}, axis=axis)


X, XY = {"x": IMAGE}, {"x": IMAGE, "z": IMAGE}
SE = {"x": IMAGE, "z": (1, 8, 1, 1)}
BN = {"s": _random(8), "b": _random(8), "m": _random(8), "v": abs(_random(8)) + 0.5}
OPERATORS: dict[str, Callable[[], onnx.ModelProto]] = {
    "conv": conv,
    "conv same": lambda: conv(pads=[1, 1, 1, 1]),
    "conv no bias": lambda: conv(bias=False),
    "conv asymmetric pads": lambda: conv(pads=[0, 1, 2, 0], strides=[2, 1]),
    "conv dilated": lambda: conv(dilations=[2, 3], pads=[2, 3, 2, 3]),
    "conv 1x1": lambda: conv(kernel=(1, 1)),
    "conv 1x7": lambda: conv(kernel=(1, 7), pads=[0, 3, 0, 3]),
    "conv 7x7 stride 2": lambda: conv((1, 3, 32, 32), 16, (7, 7), strides=[2, 2], pads=[3, 3, 3, 3]),
    "conv winograd": lambda: conv((1, 64, 14, 14), 64, pads=[1, 1, 1, 1]),
    "conv grouped": lambda: conv(group=4),
    "conv grouped wide": lambda: conv((1, 32, 9, 9), 64, group=2, pads=[1, 1, 1, 1]),
    "conv depthwise": lambda: conv(outputs=8, group=8, pads=[1, 1, 1, 1]),
    "conv depthwise stride 2": lambda: conv((1, 16, 15, 15), 16, group=16, strides=[2, 2], pads=[1, 1, 1, 1]),
    "conv depthwise twice": lambda: conv(outputs=16, group=8),
    "conv same upper": lambda: conv(auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv same lower": lambda: conv(auto_pad="SAME_LOWER", strides=[2, 2]),
    "conv valid": lambda: conv(auto_pad="VALID"),
    "conv transpose": lambda: deconv(6),
    "conv transpose stride": lambda: deconv(6, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0]),
    "conv transpose grouped": lambda: deconv(12, 4),
    "conv transpose depthwise": lambda: deconv(8, 8, strides=[2, 2]),
    "gemm": lambda: one("Gemm", {"x": ROW}, {"w": _random(24, 10), "b": _random(10)}),
    "gemm transposed": lambda: one(
        "Gemm", {"x": ROW}, {"w": _random(10, 24), "b": _random(10)}, transB=1, alpha=0.5, beta=2.0
    ),
    "gemm scalar bias": lambda: one("Gemm", {"x": ROW}, {"w": _random(24, 10), "b": _random(1)}),
    "matmul": lambda: one("MatMul", {"x": ROW}, {"w": _random(24, 10)}),
    "matmul rows": lambda: one("MatMul", {"x": (1, 5, 24)}, {"w": _random(24, 10)}),
    "matmul both": lambda: one("MatMul", {"x": (1, 2, 5, 8), "z": (1, 2, 8, 7)}),
    "batch norm": lambda: one("BatchNormalization", X, BN, epsilon=1e-3),
    "instance norm": lambda: one("InstanceNormalization", X, {"s": _random(8), "b": _random(8)}),
    "instance norm of rows": lambda: one(
        "InstanceNormalization", {"x": (1, 8, 30)}, {"s": _random(8), "b": _random(8)}
    ),
    "group norm": lambda: group_norm(IMAGE, 4),
    "group norm by group": lambda: group_norm(IMAGE, 4, 18),
    "group norm odd": lambda: group_norm((1, 15, 5, 7), 3),
    "group norm wide": lambda: group_norm((1, 64, 6, 5), 4),
    "group norm one": lambda: group_norm(IMAGE, 1),
    "group norm each": lambda: group_norm(IMAGE, 8, 20),
    "group norm row": lambda: group_norm(ROW, 3),
    "group norm rows": lambda: group_norm((1, 24, 7), 3),
    "group norm inside": group_norm_inside,
    "group norm deep": lambda: group_norm((1, 8, 3, 4, 5), 2),
    "layer norm": lambda: one("LayerNormalization", {"x": (1, 5, 24)}, {"s": _random(24), "b": _random(24)}),
    "lrn": lambda: one("LRN", X, size=5, alpha=1e-2, beta=0.75, bias=2.0),
    **{name: lambda name=name: one(name, X) for name in (
        "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Softplus", "Mish", "Erf", "Gelu",
        "Abs", "Neg", "Floor", "Ceil", "Exp", "Sin", "Cos", "Identity", "Dropout",
    )},
    "relu row": lambda: one("Relu", {"x": ROW}),
    "clip": lambda: one("Clip", X, {"low": np.float32(0), "high": np.float32(0.6)}),
    "clip below": lambda: one("Clip", X, {"low": np.float32(0.1)}),
    "clip above": lambda: one("Clip", X, {"high": np.float32(0.1)}, "x,,high"),
    "prelu": lambda: one("PRelu", X, {"s": _random(8, 1, 1)}),
    **{name: lambda name=name: one(name, XY) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")},
    "mul per channel": lambda: one("Mul", SE),
    "mul per channel first": lambda: one("Mul", SE, order="z,x"),
    "sub per channel first": lambda: one("Sub", SE, order="z,x"),
    "add constant channels": lambda: one("Add", X, {"c": _random(8, 1, 1)}),
    "add constant columns": lambda: one("Add", X, {"c": _random(11)}),
    "add constant all": lambda: one("Add", X, {"c": _random(1, 8, 9, 11)}),
    "scalar minus": lambda: one("Sub", X, {"c": np.float32(0.5)}, "c,x"),
    "minus scalar": lambda: one("Sub", X, {"c": np.float32(0.5)}, "x,c"),
    "scalar over": lambda: one("Div", {"x": ROW}, {"c": _random(1)}, "c,x"),
    "over scalar": lambda: one("Div", X, {"c": np.full((1, 1, 1, 1), 3.0, np.float32)}),
    "power": lambda: model(
        [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Pow", ["a", "c"], ["y"])], X, ["y"],
        {"c": np.float32(0.75)},
    ),
    "squared": lambda: one("Pow", X, {"c": np.float32(2)}),
    "add row to rows": lambda: one("Add", {"x": (1, 5, 24), "z": (1, 24)}),
    "concat": lambda: one("Concat", {"x": IMAGE, "z": (1, 3, 9, 11)}, axis=1),
    "concat height": lambda: one("Concat", {"x": IMAGE, "z": (1, 8, 2, 11)}, axis=2),
    "concat last": lambda: one("Concat", XY, axis=-1),
    "concat rows": lambda: one("Concat", {"x": ROW, "z": (1, 7)}, axis=1),
    "concat constant": lambda: one("Concat", {"x": (1, 4, 24)}, {"c": _random(1, 1, 24)}, "c,x", axis=1),
    "slice channels": lambda: one("Slice", X, {"s": _ints(2), "e": _ints(5), "a": _ints(1)}),
    "slice rows": lambda: one("Slice", X, {"s": _ints(-4), "e": _ints(2**40), "a": _ints(2)}),
    "slice both": lambda: one("Slice", X, {"s": _ints(1, 3), "e": _ints(-1, 9), "a": _ints(-2, -1)}),
    "slice nothing": lambda: one("Slice", X, {"s": _ints(0), "e": _ints(9), "a": _ints(2)}),
    "gather channel": lambda: gather(2, 1),
    "gather last row": lambda: gather(-1, 2),
    "gather column": lambda: gather(3, -1),
    "gather column kept": lambda: gather([3], -1),
    "gather channels": lambda: gather([2, 3, 4, 5], 1),
    "gather last rows": lambda: gather([-3, -2, 8], 2),
    "gather all": lambda: gather([*range(9)], 2),
    "gather table": lambda: gather([[1, 2], [3, 4]], 3, (1, 8, 11, 6)),
    "gather token": lambda: gather(0, 1, (1, 5, 24)),
    "gather of a row": lambda: gather([4, 5, 6, 7], 1, ROW),
    "gather slice": lambda: gather(1, 2, (1, 8, 3, 4, 5)),
    "gather tokens": lambda: model(
        [helper.make_node("Gather", ["x", "i"], ["a"], axis=1), helper.make_node("Gather", ["x", "j"], ["b"], axis=1),
         helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Gemm", ["sum", "w"], ["y"])],
        {"x": (1, 3, 24)}, ["y"], {"i": np.int64(0), "j": np.int64(-1), "w": _random(24, 10)},
    ),
    "gather plane kept": lambda: gather([1, 2], 3, (1, 8, 3, 4, 5)),
    "max pool": lambda: one("MaxPool", X, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max pool ceil": lambda: one("MaxPool", {"x": (1, 8, 10, 12)}, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "max pool asymmetric": lambda: one("MaxPool", X, kernel_shape=[2, 3], pads=[0, 1, 1, 0]),
    "average pool": lambda: one("AveragePool", X, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "average pool pads": lambda: one("AveragePool", X, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "average pool same": lambda: one("AveragePool", X, kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    "average pool ceil": lambda: one(
        "AveragePool", {"x": (1, 8, 10, 12)}, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1
    ),
    "global average pool": lambda: one("GlobalAveragePool", X),
    "global max pool": lambda: one("GlobalMaxPool", X),
    "reduce image": lambda: one("ReduceMean", X, {"a": _ints(2, 3)}, keepdims=0),
    "reduce image kept": lambda: one("ReduceMean", X, {"a": _ints(-1, -2)}),
    "reduce columns": lambda: one("ReduceSum", X, {"a": _ints(3)}, keepdims=0),
    "reduce channels": lambda: one("ReduceMax", X, {"a": _ints(1)}),
    "flatten": lambda: one("Flatten", X),
    "reshape": lambda: one("Reshape", X, {"s": _ints(1, 4, -1)}),
    "reshape deeper": lambda: one("Reshape", X, {"s": _ints(1, 2, 4, 9, 11)}),
    "squeeze": lambda: one("Squeeze", {"x": (1, 8, 1, 1)}, {"a": _ints(2, 3)}),
    "unsqueeze": lambda: one("Unsqueeze", {"x": ROW}, {"a": _ints(2, 3)}),
    "softmax": lambda: one("Softmax", {"x": ROW}, axis=1),
    "softmax channels": lambda: one("Softmax", X, axis=1),
    "softmax last": lambda: one("Softmax", {"x": (1, 5, 24)}),
    "resize nearest": lambda: one("Resize", X, {"s": _random(0), "f": np.float32([1, 1, 2, 3])}, "x,,f",
                                  coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "resize nearest centred": lambda: one("Resize", X, {"f": np.float32([1, 1, 3, 2])}, "x,,f"),
    "resize nearest smaller": lambda: one("Resize", X, {"z": _ints(1, 8, 4, 5)}, "x,,,z",
                                          coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "resize linear": lambda: one("Resize", X, {"f": np.float32([1, 1, 2, 2])}, "x,,f", mode="linear"),
    "resize linear smaller": lambda: one("Resize", X, {"z": _ints(1, 8, 5, 6)}, "x,,,z", mode="linear"),
    "resize corners": lambda: one("Resize", X, {"z": _ints(1, 8, 17, 21)}, "x,,,z", mode="linear",
                                  coordinate_transformation_mode="align_corners"),
    "resize cubic": lambda: one("Resize", X, {"f": np.float32([1, 1, 2, 2])}, "x,,f", mode="cubic"),
    "pad": lambda: one("Pad", X, {"p": _ints(0, 0, 1, 2, 0, 0, 3, 0), "v": np.float32(0.5)}),
    "pad channels": lambda: one("Pad", X, {"p": _ints(0, 1, 0, 0, 0, 2, 0, 0)}),
    "pad reflect": lambda: one("Pad", X, {"p": _ints(0, 0, 1, 2, 0, 0, 3, 1)}, mode="reflect"),
    "pad edge": lambda: one("Pad", X, {"p": _ints(0, 0, 1, 2, 0, 0, 3, 1)}, mode="edge"),
    "depth to space": lambda: one("DepthToSpace", X, blocksize=2),
    "depth to space crd": lambda: one("DepthToSpace", X, blocksize=2, mode="CRD"),
    "space to depth": lambda: one("SpaceToDepth", {"x": (1, 8, 10, 12)}, blocksize=2),
    "split": lambda: model(
        [helper.make_node("Split", ["x", "s"], ["a", "b", "c"], axis=1)], X, ["a", "b", "c"], {"s": _ints(2, 5, 1)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name: str, device: int | None, tmp_path: Path) -> None:
    assert difference(OPERATORS[name](), tmp_path, device) < TOLERANCE


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_every_transpose(rank: int, tmp_path: Path) -> None:
    shape = (1, 2, 3, 4, 5)[: rank + 1]
    for order in permutations(range(1, rank + 1)):
        assert difference(one("Transpose", {"x": shape}, perm=[0, *order]), tmp_path) == 0, order


@settings(max_examples=40)
@given(data=st.data())
def test_any_convolution(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    draw = data.draw
    group = draw(st.sampled_from([1, 1, 2, 4]))
    channels, outputs = (group * draw(st.integers(1, 5)) for _ in range(2))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    pads = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    strides, dilations = ([draw(st.integers(1, 3)) for _ in kernel] for _ in range(2))
    size = [(k - 1) * d + 1 + draw(st.integers(0, 9)) for k, d in zip(kernel, dilations, strict=True)]
    made = conv((1, channels, *size), outputs, kernel, draw(st.booleans()), group=group, pads=pads, strides=strides,
                dilations=dilations)  # fmt: skip
    assert difference(made, tmp_path_factory.mktemp("conv")) < TOLERANCE


def residual(names: dict[str, str] | None = None) -> onnx.ModelProto:
    """Two inputs; a tensor that is an output and is read twice inside; two outputs."""
    weights = {"w": _random(8, 8, 3, 3), "w2": _random(8, 8, 3, 3), "b2": _random(8), **BN}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "z"], ["a"]),
        helper.make_node("Add", ["a", "r"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
        helper.make_node("Mul", ["x", "x"], ["squared"]),
    ]
    made = model(nodes, XY, ["r", "y", "squared"], weights)
    for node in made.graph.node:
        for field in (node.input, node.output):
            field[:] = [(names or {}).get(name, name) for name in field]
    for value in (*made.graph.input, *made.graph.output, *made.graph.value_info):
        value.name = (names or {}).get(value.name, value.name)
    return made


def test_several_inputs_and_outputs(device: int | None, tmp_path: Path) -> None:
    assert difference(residual(), tmp_path, device) < TOLERANCE


def test_names_that_the_format_cannot_hold(tmp_path: Path) -> None:
    names = {"x": "an input", "r": "a\nb 0=1", "y": "é" * 300, "squared": "../;$(x)", "c2": "9 9\n", "z": "1"}
    assert difference(residual(names), tmp_path) < TOLERANCE
    lines = (tmp_path / "m.param").read_text().splitlines()
    assert len(lines) == 2 + int(lines[1].split()[0])


@given(st.text(max_size=300))
def test_blob_names_are_one_word(name: str) -> None:
    word = blob_name(name)
    assert word.split() == [word] and len(word) < 250
    assert word == name or "@" in word


def test_norms_and_activations_join_convolutions(tmp_path: Path) -> None:
    made = residual()
    kinds = [line.split()[0] for line in to_ncnn(made).param.splitlines()[2:]]
    assert "BatchNorm" not in kinds
    assert kinds.count("ReLU") == 1  # the other one is behind an Add
    assert kinds.count("Convolution") == 2


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Sigmoid", "HardSwish", "Tanh"])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_chains(operator: str, activation: str, device: int | None, tmp_path: Path) -> None:
    nodes = [
        helper.make_node(operator, ["x", "w"], ["c"], group=2),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
        helper.make_node(activation, ["n"], ["y"]),
    ]
    weights = {"w": _random(8, 4, 3, 3), **BN}
    assert difference(model(nodes, X, ["y"], weights), tmp_path, device) < TOLERANCE


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "regnetx_1_6gf", "yolov2", "posenet", "fst"])
def test_networks_of_the_zoo(name: str, tmp_path: Path) -> None:
    made = blueprint(name, (64, 64)).with_weights(0)
    assert difference(made, tmp_path) < TOLERANCE


def test_retinaface(tmp_path: Path) -> None:
    assert difference(blueprint("retinaface", (128, 128)).with_weights(0), tmp_path) < TOLERANCE


def test_resnet18_on_a_vulkan_device(device: int | None, tmp_path: Path) -> None:
    assert difference(blueprint("resnet18", (64, 64)).with_weights(0), tmp_path, device) < TOLERANCE


@pytest.mark.parametrize("module", [MobileNetLike, lambda: Inception(3, 4)])
def test_exported_networks(module: Any, device: int | None, tmp_path: Path) -> None:
    path = export(module(), tmp_path / "m.onnx", (1, 3, 32, 32))
    assert difference(onnx.load(path), tmp_path, device) < TOLERANCE


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "no such layer": (lambda: one("Det", {"x": (1, 3, 3)}), "no such layer"),
    "batch": (lambda: one("Relu", {"x": (2, 3, 4, 4)}), "batch"),
    "no batch": (lambda: one("Relu", {"x": (5,)}), "batch"),
    "along the batch": (lambda: one("Concat", XY, axis=0), "batch"),
    "moved batch": (lambda: one("Transpose", X, perm=[1, 0, 2, 3]), "batch"),
    "every second": (
        lambda: one("Slice", X, {"s": _ints(0), "e": _ints(9), "a": _ints(2), "t": _ints(2)}), "every 2th"
    ),
    "gather every second": (lambda: gather([0, 2, 4], 2), "neighbours"),
    "gather backwards": (lambda: gather([3, 2], 2), "neighbours"),
    "gather twice": (lambda: gather([1, 1], 2), "neighbours"),
    "gather around the end": (lambda: gather([-1, 0], 2), "neighbours"),
    "gather behind the end": (lambda: gather([8, 9], 2), "neighbours"),
    "gather far before": (lambda: gather([-10], 2), "neighbours"),
    "gather the batch": (lambda: gather(0, 0), "batch"),
    "gather a number": (lambda: gather(4, 1, ROW), "batch"),
    "gather by a tensor": (lambda: model(
        [helper.make_node("ArgMax", ["z"], ["i"], axis=1, keepdims=0),
         helper.make_node("Gather", ["x", "i"], ["y"], axis=1)],
        {"x": ROW, "z": ROW}, ["y"]), "index is not constant"),
    "group norm batch": (lambda: group_norm((2, 8, 3, 3), 4), "batch"),
    "group norm by a tensor": (lambda: one(
        "GroupNormalization", {"x": IMAGE, "s": (4,)}, {"b": _random(4)}, num_groups=4), "scale is not constant"),
    "dynamic weights": (lambda: one("Conv", {"x": IMAGE, "w": (4, 8, 3, 3)}), "constant"),
    "one dimension": (lambda: one("Conv", {"x": (1, 8, 9)}, {"w": _random(4, 8, 3)}), "dimension"),
    "dilated pool": (lambda: one("MaxPool", X, kernel_shape=[2, 2], dilations=[2, 2]), "dilated"),
    "both stretched": (lambda: one("Mul", {"x": (1, 8, 1, 11), "z": (1, 8, 9, 1)}), "both"),
    "power": (lambda: one("Pow", X, {"c": np.float32(3)}), "power"),
    "resize": (lambda: one("Resize", X, {"f": np.float32([1, 1, 2, 2])}, "x,,f", mode="linear",
                           coordinate_transformation_mode="asymmetric"), "asymmetric"),
    "wrapped pad": (lambda: one("Pad", X, {"p": _ints(0, 0, 1, 2, 0, 0, 3, 1)}, mode="wrap"), "wrap"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_ncnn_cannot_do_is_refused_with_its_operator(name: str) -> None:
    build, reason = REFUSED[name]
    with pytest.raises(Unconvertible) as caught:
        to_ncnn(build())
    assert reason in caught.value.reason
    assert caught.value.node in ("x", "y")
    assert "another engine" in str(caught.value)


def test_an_input_that_is_an_output_and_constants_are_refused() -> None:
    passed = model([helper.make_node("Relu", ["x"], ["y"])], X, ["x", "y"])
    constant = model([helper.make_node("Relu", ["c"], ["y"])], X, ["y"], {"c": _random(*IMAGE)})
    for made in (passed, constant):
        with pytest.raises(Unconvertible):
            to_ncnn(made)


def test_external_weights_come_from_the_caller(tmp_path: Path) -> None:
    made = conv()
    inline = to_ncnn(made)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    for tensor in made.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="elsewhere.bin")
    assert to_ncnn(made, weights) == inline
    with pytest.raises(Unconvertible, match="not at hand"):
        to_ncnn(made)


def test_weights_layer_by_layer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Models share the files of the layers that they have in common, whatever else is in them."""
    made = residual()
    files = to_ncnn(made)
    assert len(files.weights) == 2
    assert to_ncnn(conv()).weights[0] not in files.weights
    first = model(
        made.graph.node[:3], X, ["r"], {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    )
    assert to_ncnn(first).weights == files.weights[:1]
    (tmp_path / "m.param").write_text(files.param)
    names = ("m.param", *(f"{n}.bin" for n in range(2)))
    for name, data in zip(names[1:], files.weights, strict=True):
        (tmp_path / name).write_bytes(data)
    given = {"x": _random(*IMAGE), "z": _random(*IMAGE)}
    wanted = run_onnx(made, given)
    for memory_files in (True, False):
        if not memory_files:
            monkeypatch.delattr("os.memfd_create", raising=False)
        outputs = [np.zeros(IMAGE, np.float32) for _ in wanted]
        described = piece(names, list(given), ["r", "y", "squared"])
        session = ENGINE.load(described, tmp_path, list(given.values()), outputs)
        session.run()
        assert all(np.abs(a - b).max() < TOLERANCE * np.abs(b).max() for a, b in zip(outputs, wanted, strict=True))


def test_a_model_without_weights(tmp_path: Path) -> None:
    made = one("Relu", X)
    assert to_ncnn(made).weights == ()
    (tmp_path / "m.param").write_text(to_ncnn(made).param)
    x, y = _random(*IMAGE), np.zeros(IMAGE, np.float32)
    ENGINE.load(piece(("m.param",), ["x"], ["y"]), tmp_path, [x], [y]).run()
    assert np.array_equal(y, np.maximum(x, 0))


def test_views_of_larger_arrays_are_read_and_written(device: int | None, tmp_path: Path) -> None:
    made = conv(pads=[1, 1, 1, 1])
    whole, result = _random(1, 8, 20, 11), np.zeros((1, 20, 9, 11), np.float32)
    view, part = whole[:, :, 4:13], result[:, 3:15]
    session = ENGINE.load(piece(write(made, tmp_path), ["x"], ["y"], device), tmp_path, [view], [part])
    session.run()
    wanted = run_onnx(made, {"x": view})[0]
    assert np.abs(part - wanted).max() < TOLERANCE * np.abs(wanted).max()
    assert not result[:, :3].any() and not result[:, 15:].any()
    session.close()


def test_other_threads_go_on_meanwhile(tmp_path: Path) -> None:
    made = conv((1, 256, 112, 112), 256, pads=[1, 1, 1, 1])
    x, y = _random(1, 256, 112, 112), np.zeros((1, 256, 112, 112), np.float32)
    session = ENGINE.load(piece(write(made, tmp_path), ["x"], ["y"]), tmp_path, [x], [y])
    took: list[float] = []

    def work() -> None:
        start = time.perf_counter()
        for _ in range(3):
            session.run()
        took.append(time.perf_counter() - start)

    thread = threading.Thread(target=work)
    ticks = [time.perf_counter()]
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        ticks.append(time.perf_counter())
    assert max(np.diff(ticks)) < took[0] / 6  # half of one run


def test_half_precision_differs_but_little(tmp_path: Path) -> None:
    made = blueprint("resnet18", (64, 64)).with_weights(0)
    name, shape = made.graph.input[0].name, (1, 3, 64, 64)
    x, y = _random(*shape), np.zeros((1, 1000), np.float32)
    wanted = run_onnx(made, {name: x})[0]
    described = piece(write(made, tmp_path), [name], [made.graph.output[0].name])
    for precision in ("fp16", "bf16"):
        half = type(described)(**{**vars(described), "processor": f"cpu/ncnn/{precision}"})
        ENGINE.load(half, tmp_path, [x], [y]).run()
        assert np.abs(y - wanted).max() < 0.1 * np.abs(wanted).max()


def test_mistakes_are_told_apart(tmp_path: Path) -> None:
    files = write(conv(), tmp_path)
    x, y = _random(*IMAGE), np.zeros((1, 12, 7, 9), np.float32)

    def load(**changes: Any) -> None:
        good = piece(files, ["x"], ["y"])
        ENGINE.load(type(good)(**{**vars(good), **changes}), tmp_path, [x], [y])

    (tmp_path / "broken.param").write_text("7767517\n1 1\nNoSuchLayer a 0 1 a\n")
    (tmp_path / "short.bin").write_bytes(b"\0" * 8)
    with pytest.raises(RuntimeError, match=r"cannot read broken\.param"):
        load(files=("broken.param", files[1]))
    with pytest.raises(RuntimeError, match=r"cannot read the weights of m\.param"):
        load(files=(files[0], "short.bin"))
    with pytest.raises(RuntimeError, match="no Vulkan device 99"):
        load(device=99)
    with pytest.raises(ValueError, match="int8"):
        load(processor="cpu/ncnn/int8")
    with pytest.raises(RuntimeError, match="no input or output 'q'"):
        load(reads=piece(files, ["q"], []).reads)
    x = np.zeros((2, 8, 9, 11), np.float32)
    with pytest.raises(ValueError, match="batch of 1"):
        load()
