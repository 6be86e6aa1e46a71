"""Planned shapes after channel pruning: against networks that are built with fewer channels, and what must hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hetrl import zoo
from hetrl.compress.channels import pruned
from hetrl.errors import UsageError
from hetrl.graph import Node, OperatorGraph, OpKind, load_graph
from hetrl.graph.reader import graph_from_model
from hetrl.zoo.builder import Builder
from tests import torch_models

NAMES = ("vgg16", "resnet18", "MobileNetLike", "GoogLeNetLike", "ViTLike")


class Models(dict[str, OperatorGraph]):
    """Graphs by name, each made once and only where a test needs it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> OperatorGraph:
        if name in zoo.names():
            self[name] = zoo.resolve_model(name)
        else:
            module = getattr(torch_models, name)()
            self[name] = load_graph(torch_models.export(module, self.folder / f"{name}.onnx", (1, 3, 32, 32)))
        return self[name]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


class Net:
    """ONNX nodes one by one, float32 weights of zeros."""

    def __init__(self, *shape: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)

    def weight(self, *shape: int) -> str:
        return self.constant(np.zeros(shape, np.float32))

    def constant(self, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def add(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        name = f"{op_type.lower()}{len(self.nodes)}"
        names = [name, *(f"{name}.{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, inputs, names, **attributes))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 1, **attributes: object) -> str:
        groups = attributes.get("group", 1)
        assert isinstance(groups, int)
        weight = self.weight(outputs, inputs // groups, kernel, kernel)
        return self.add("Conv", x, weight, self.weight(outputs), pads=[kernel // 2] * 4, **attributes)

    def graph(self, *outputs: str) -> OperatorGraph:
        infos = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "net", [self.input], infos, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        return graph_from_model(model, name="net")


Keep = Callable[[int], int]


def from_builder(keep: Keep) -> OperatorGraph:
    """Chain, residual blocks with and without projection, depthwise, concatenation, gate, flatten, dense layers."""
    net = Builder("net")
    x = net.input("data", (2, 3, 16, 16))
    x = net.activation(net.batch_norm(net.conv(x, "stem", keep(16), 3, bias=False), "bn"), "relu")
    y = net.conv(net.activation(net.conv(x, "a1", keep(24), 3), "r1"), "a2", keep(16), 3)
    x = net.activation(net.add(x, y, "add1"), "r2")
    y = net.conv(net.conv(x, "b1", keep(32), 3, stride=2), "b2", keep(40), 1)
    x = net.add(y, net.conv(x, "down", keep(40), 1, stride=2), "add2")
    x = net.conv(x, "depthwise", keep(40), 3, groups=keep(40), bias=False)
    x = net.concat(
        [net.conv(x, "p1", keep(20), 1), net.max_pool(x, "p2", 3, 1, pad=1), net.conv(x, "p3", keep(8), 5)], "cat"
    )
    x = net.batch_norm(x, "catbn")
    x = net.conv(x, "merge", keep(28), 1)
    x = net.average_pool(x, "pool", 3, 2, pad=1, ceil=True)
    x = net.flatten(x, "flat")
    x = net.activation(net.gemm(x, "fc1", keep(100)), "r3")
    return graph_from_model(net.finish(net.gemm(x, "logits", 10)).model, name="net")


def from_nodes(keep: Keep) -> OperatorGraph:
    """What the builder of the zoo does not have."""
    net = Net(1, 3, 8, 8)
    c, d = keep(24), keep(44)
    x = net.add("PRelu", net.conv("data", 3, c, 3), net.weight(c, 1, 1))
    gate = net.add("ReduceMean", x, net.integers(2, 3), keepdims=0)
    hidden = net.add("Add", net.add("MatMul", gate, net.weight(c, d)), net.weight(d))
    gate = net.add("Sigmoid", net.add("Gemm", hidden, net.weight(c, d), net.weight(c), transB=1))
    x = net.add("Mul", x, net.add("Unsqueeze", gate, net.integers(2, 3)))
    x = net.conv(x, c, 2 * c, 3, group=c)  # two outputs per channel
    x = net.add("ConvTranspose", x, net.weight(2 * c, d, 2, 2), net.weight(d), strides=[2, 2])
    x = net.add("InstanceNormalization", x, net.weight(d), net.weight(d))
    x = net.add("Clip", x, net.weight(), net.weight())
    sizes = net.constant(np.array([1, 1, 0.5, 0.5], np.float32))
    x = net.add("Resize", x, "", sizes, mode="linear")
    x = net.add("Slice", x, net.integers(1), net.integers(7), net.integers(2))
    x = net.add("Pad", x, net.integers(0, 0, 2, 0, 0, 0, 0, 0))
    spread = net.add("Mul", x, net.conv(x, d, 1))  # a gate that all channels share
    x = net.add("Transpose", net.add("Add", x, spread), perm=[0, 2, 3, 1])
    x = net.add("Gelu", net.add("MatMul", x, net.weight(d, keep(60))))
    x = net.add("Transpose", net.add("Mul", x, net.weight(8, 8, 1)), perm=[0, 3, 1, 2])
    x = net.add("GlobalAveragePool", net.conv(x, keep(60), keep(36), 3))
    return net.graph(net.conv(x, keep(36), 10))


def comparable(node: Node) -> Node:
    return msgspec.structs.replace(node, signature="")


@pytest.mark.parametrize(("ratio", "multiple"), [(0.0, 4), (0.25, 4), (0.3, 1), (0.5, 4), (0.6, 8), (0.95, 2)])
@pytest.mark.parametrize("build", [from_builder, from_nodes])
def test_equals_the_network_built_with_fewer_channels(
    build: Callable[[Keep], OperatorGraph], ratio: float, multiple: int
) -> None:
    def keep(channels: int) -> int:
        exact = round(channels * (1 - ratio), 9)
        return min(channels, math.ceil(max(exact, 1) / multiple) * multiple)

    small, expected = pruned(build(lambda channels: channels), ratio, multiple), build(keep)
    assert small.tensors == expected.tensors
    assert [comparable(node) for node in small.nodes] == [comparable(node) for node in expected.nodes]


def test_unit_sized_and_narrow_weights_keep_their_bytes() -> None:
    """int8 weights with 32-bit biases, and a bias of one number, which does not count as parameters."""

    def build(keep: Keep) -> OperatorGraph:
        net = Net(1, 3, 8, 8)
        scale = net.constant(np.array(0.1, np.float32))
        x = net.conv("data", 3, keep(32), 3)
        weight = net.constant(np.zeros((keep(16), keep(32), 3, 3), np.int8))
        bias = net.constant(np.zeros(keep(16), np.int32))
        weight, bias = (net.add("DequantizeLinear", constant, scale) for constant in (weight, bias))
        x = net.add("Conv", x, weight, bias)
        return net.graph(net.conv(x, keep(16), 1))

    small, expected = pruned(build(lambda c: c), 0.5), build(lambda c: c // 2)
    assert [node.weight_bytes for node in small.nodes] == [node.weight_bytes for node in expected.nodes]
    assert small.parameters == expected.parameters


@pytest.mark.parametrize("name", NAMES)
def test_ratio_zero_changes_nothing(graphs: Models, name: str) -> None:
    assert pruned(graphs[name], 0) == graphs[name]
    assert pruned(graphs[name], 0, multiple=3) == graphs[name]


@pytest.mark.parametrize("name", NAMES)
def test_only_sizes_change(graphs: Models, name: str) -> None:
    full, small = graphs[name], pruned(graphs[name], 0.5)
    for field in ("name", "groups", "inputs", "outputs", "structure_hash", "weights_hash", "warnings"):
        assert getattr(small, field) == getattr(full, field)
    for old, new in zip(full.nodes, small.nodes, strict=True):
        for field in ("id", "op_type", "domain", "inputs", "outputs", "signature"):
            assert getattr(new, field) == getattr(old, field)
        assert new.geometry.kind is old.geometry.kind
    assert small.macs < full.macs
    assert small.parameters < full.parameters
    assert small.weight_bytes < full.weight_bytes


@given(
    name=st.sampled_from(NAMES),
    ratio=st.floats(0, 1, exclude_max=True),
    more=st.floats(0, 1),
    multiple=st.integers(1, 40),
)
@settings(max_examples=60)
def test_invariants(graphs: Models, name: str, ratio: float, more: float, multiple: int) -> None:
    full, small = graphs[name], pruned(graphs[name], ratio, multiple)
    for tensor, old in zip(small.tensors, full.tensors, strict=True):
        differing = [(new, was) for new, was in zip(tensor.shape, old.shape, strict=True) if new != was]
        assert len(differing) <= 1
        assert all(0 < new < was for new, was in differing)
        assert tensor.bytes == old.bytes * tensor.elements // old.elements
    for tensor in (*small.inputs, *small.outputs):
        assert small.tensor_by_name[tensor] == full.tensor_by_name[tensor]
    for node, old_node in zip(small.nodes, full.nodes, strict=True):
        check_node(small, node)
        assert 0 <= node.macs <= old_node.macs
        assert 0 <= node.flops <= old_node.flops
        assert 0 <= node.weight_elements <= old_node.weight_elements
        assert 0 <= node.weight_bytes <= old_node.weight_bytes
    smaller = pruned(full, min(ratio + more * (1 - ratio), math.nextafter(1, 0)), multiple)
    assert all(a.macs >= b.macs for a, b in zip(small.nodes, smaller.nodes, strict=True))


def check_node(graph: OperatorGraph, node: Node) -> None:
    """Shapes and costs of a node agree with each other."""
    shapes = [graph.tensor_by_name[name].shape for name in node.inputs]
    out = graph.tensor_by_name[node.outputs[0]]
    assert node.input_bytes == sum(graph.tensor_by_name[name].bytes for name in node.inputs)
    assert node.output_bytes == sum(graph.tensor_by_name[name].bytes for name in node.outputs)
    if node.geometry.kind is OpKind.CONV:
        assert node.geometry.in_channels == shapes[0][1]
        assert node.geometry.out_channels == out.shape[1]
        assert node.geometry.in_channels % node.geometry.groups == 0
        kernel = node.geometry.kernel_h * node.geometry.kernel_w
        assert node.macs == out.elements * node.geometry.in_channels // node.geometry.groups * kernel
    elif node.geometry.kind is OpKind.GEMM:
        assert (node.geometry.in_channels, node.geometry.out_channels) == (shapes[0][-1], out.shape[-1])
    elif node.geometry.kind is OpKind.ELEMENTWISE:
        assert np.broadcast_shapes(*shapes) == out.shape
    elif node.op_type == "Concat" and out.shape[1] != 17:  # ViT's class token is a constant
        assert sum(shape[1] for shape in shapes) == out.shape[1]
    elif node.geometry.kind is OpKind.VIEW:
        assert math.prod(shapes[0]) == out.elements


def test_halved_vgg16(graphs: Models) -> None:
    full, small = graphs["vgg16"], pruned(graphs["vgg16"], 0.5)

    def conv_macs(graph: OperatorGraph) -> int:
        return sum(node.macs for node in graph.nodes if node.op_type == "Conv")

    assert conv_macs(small) == pytest.approx(conv_macs(full) / 4, rel=0.02)
    fc6 = small.nodes[small.node_index["fc6"]]
    assert (fc6.geometry.in_channels, fc6.geometry.out_channels) == (256 * 49, 2048)
    assert fc6.weight_elements == 256 * 49 * 2048 + 2048
    assert fc6.weight_bytes == 4 * fc6.weight_elements
    assert small.tensor_by_name["logits"].shape == (1, 1000)


def test_halved_resnet18(graphs: Models) -> None:
    small = pruned(graphs["resnet18"], 0.5)
    shape = {tensor.name: tensor.shape for tensor in small.tensors}
    assert shape["conv1"][1] == 32
    for stage, width in enumerate((32, 64, 128, 256), 1):
        for block in range(2):
            assert {shape[f"layer{stage}.{block}.{n}"][1] for n in ("conv1", "conv2", "add", "relu2")} == {width}
    assert shape["layer3.0.downsample.0"][1] == 128


def test_the_study_point(graphs: Models) -> None:
    """`hetrl.accuracy` takes it that 0.3 of the channels are half of ResNet-18's weights."""
    share = pruned(graphs["resnet18"], 0.3).weight_bytes / graphs["resnet18"].weight_bytes
    assert share == pytest.approx(0.5, abs=0.02)


def test_what_goes_of_a_transformer(graphs: Models) -> None:
    """Places within the heads and the hidden layers; the residual stream is normalized and stays whole."""
    full, small = graphs["ViTLike"], pruned(graphs["ViTLike"], 0.5)
    changed = {(old.shape, new.shape) for old, new in zip(full.tensors, small.tensors, strict=True) if old != new}
    assert ((1, 17, 128), (1, 17, 64)) in changed  # hidden
    assert ((1, 17, 96), (1, 17, 48)) in changed  # queries, keys and values of four heads
    assert {old[-1] for old, _ in changed} == {128, 96, 32, 8, 17}  # 17 tokens: transposed keys
    streams = [group for group in full.channels.groups if group.reason and "LayerNormalization" in group.reason]
    assert [group.size for group in streams] == [32]


def product(net: Net, x: str) -> str:
    return net.add("MatMul", x, net.add("Transpose", x, perm=[0, 1, 3, 2]))


def shuffle(net: Net, x: str) -> str:
    x = net.add("Reshape", x, net.integers(1, 4, 4, 8, 8))
    return net.add("Reshape", net.add("Transpose", x, perm=[0, 2, 1, 3, 4]), net.integers(1, 16, 8, 8))


def half(net: Net, x: str) -> str:
    return net.add("Slice", x, net.integers(0), net.integers(8), net.integers(1))


def split(net: Net, x: str) -> str:
    x = net.add("Split", x, outputs=2, axis=1, num_outputs=2)
    return net.add("Concat", f"{x}.1", x, axis=1)


def transposed_square(net: Net, x: str) -> str:
    """16 x 8 x 8 becomes 8 x 16 x 8 unambiguously, and 16 x 16 x 4 does not."""
    x = net.add("Reshape", x, net.integers(1, 16, 16, 4))
    x = net.add("Transpose", x, perm=[0, 2, 1, 3])
    return net.add("Reshape", x, net.integers(1, 16, 8, 8))


def left_factor(net: Net, x: str) -> str:
    """A constant left factor mixes rows, a right one columns."""
    x = net.add("Reshape", x, net.integers(16, 64))
    x = net.add("MatMul", net.weight(16, 16), x)
    return net.add("Reshape", x, net.integers(1, 16, 8, 8))


def gated_halves(net: Net, x: str) -> str:
    x = net.add("Split", x, outputs=2, axis=1, num_outputs=2)
    return net.add("Mul", x, net.add("Sigmoid", f"{x}.1"))


def every_other(net: Net, x: str) -> str:
    return net.add("Slice", x, net.integers(0), net.integers(16), net.integers(1), net.integers(2))


def maximum(net: Net, x: str) -> str:
    return net.add("Sub", x, net.add("ReduceMax", x, net.integers(1)))


def ambiguous_mean(net: Net, x: str) -> str:
    x = net.add("Reshape", x, net.integers(1, 16, 16, 4))
    return net.add("Unsqueeze", net.add("ReduceMean", x, net.integers(1, 3), keepdims=0), net.integers(2, 3))


WHOLE: dict[str, Callable[[Net, str], str]] = {
    "softmax": lambda net, x: net.add("Softmax", x, axis=1),
    "layer norm": lambda net, x: net.add("LayerNormalization", x, net.weight(16, 8, 8), axis=1),
    "instance norm of all": lambda net, x: net.add("GroupNormalization", x, *2 * [net.weight(1)], num_groups=1),
    "local response": lambda net, x: net.add("LRN", x, size=5),
    "input": lambda net, x: net.add("Add", x, "data"),
    "unknown": lambda net, x: net.add("Mystery", x, domain="nowhere"),
    "depth to space": lambda net, x: net.add("DepthToSpace", x, blocksize=4),
    "cumulative": lambda net, x: net.add("CumSum", x, net.integers(1)),
    "every other": every_other,
    "maximum": maximum,
    "transposed square": transposed_square,
    "mean": ambiguous_mean,
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_is_not_certain_stays_whole(case: str) -> None:
    """The convolution before the operator, and the operator's output; channels behind the next convolution go."""
    net = Net(1, 16, 8, 8)
    first = net.conv("data", 16, 16, 3)
    behind = WHOLE[case](net, first)
    channels = {"depth to space": 1, "every other": 8}.get(case, 16)
    last = net.add("Relu", net.conv(behind, channels, 32))
    graph = net.graph(net.conv(last, 32, 5))
    small = pruned(graph, 0.5)
    assert small.tensor_by_name[first].shape[1] == 16
    assert small.tensor_by_name[behind] == graph.tensor_by_name[behind]
    assert small.tensor_by_name[last].shape[1] == 16
    assert small.macs < graph.macs
    (group,) = (group for group in graph.channels.groups if group.name == first)
    assert group.reason


GOES: dict[str, tuple[Callable[[Net, str], str], int]] = {
    "grouped": (lambda net, x: net.conv(x, 16, 16, 3, group=4), 8),
    "group norm": (lambda net, x: net.add("GroupNormalization", x, net.weight(4), net.weight(4), num_groups=4), 8),
    "depth to space": (lambda net, x: net.add("DepthToSpace", x, blocksize=2), 2),
    "space to depth": (lambda net, x: net.add("SpaceToDepth", x, blocksize=2), 32),
    "gather": (lambda net, x: net.add("Gather", x, net.integers(*range(15, -1, -1)), axis=1), 8),
    "product": (product, 8),
    "shuffle": (shuffle, 8),
    "half": (half, 4),
    "split": (split, 8),
    "gated halves": (gated_halves, 4),
    "constant operand": (lambda net, x: net.add("Concat", x, net.weight(1, 2, 8, 8), axis=1), 10),
    "left factor": (left_factor, 8),
    "sum": (lambda net, x: net.add("Mul", x, net.add("ReduceSum", x, net.integers(1))), 8),
}


@pytest.mark.parametrize("case", GOES)
def test_what_attributes_prove_goes(case: str) -> None:
    net = Net(1, 16, 8, 8)
    first = net.conv("data", 16, 16, 3)
    behind, left = GOES[case][0](net, first), GOES[case][1]
    channels = {"depth to space": 4, "space to depth": 64, "half": 8, "gated halves": 8, "constant operand": 18}
    graph = net.graph(net.conv(behind, channels.get(case, 16), 5))
    small = pruned(graph, 0.5, multiple=2 if case == "depth to space" else 4)
    assert small.tensor_by_name[first].shape[1] == 8
    assert small.tensor_by_name[behind].shape[1] == left


def test_a_concatenation_along_the_height_links_its_operands() -> None:
    net = Net(1, 3, 8, 8)
    one, two = net.conv("data", 3, 16, 3), net.conv("data", 3, 16, 1)
    graph = net.graph(net.conv(net.add("Concat", one, two, axis=2), 16, 4))
    assert [tensor.shape[1] for tensor in pruned(graph, 0.5).tensors] == [3, 8, 8, 8, 4]
    graph = net.graph(net.conv(net.add("Concat", one, "data", axis=1), 19, 4))
    assert 8 + 3 in [tensor.shape[1] for tensor in pruned(graph, 0.5).tensors]


def test_outputs_and_what_is_added_to_them_stay_whole() -> None:
    net = Net(1, 3, 8, 8)
    one, two = net.conv("data", 3, 16, 3), net.conv("data", 3, 16, 1)
    total = net.add("Add", one, two)
    graph = net.graph(net.conv(total, 16, 4), two)
    assert pruned(graph, 0.9) == graph


def test_cached_properties_are_not_carried_over(graphs: Models) -> None:
    full = graphs["resnet18"]
    assert full.tensor_by_name["conv1"].shape[1] == 64
    assert pruned(full, 0.5).tensor_by_name["conv1"].shape[1] == 32


@pytest.mark.parametrize(("ratio", "multiple"), [(1.0, 4), (-0.1, 4), (math.nan, 4), (math.inf, 4), (0.5, 0)])
def test_senseless_options(graphs: Models, ratio: float, multiple: int) -> None:
    with pytest.raises(UsageError):
        pruned(graphs["resnet18"], ratio, multiple)


def test_speed() -> None:
    net = Net(1, 3, 8, 8)
    x = net.conv("data", 3, 16, 3)
    for _ in range(66):
        x = net.add("Add", net.add("Relu", net.conv(x, 16, 16, 3)), x)
    graph = net.graph(net.conv(x, 16, 4))
    assert len(graph.nodes) == 200
    best = math.inf
    for _ in range(5):
        start = time.process_time()
        pruned(graph, 0.5)
        best = min(best, time.process_time() - start)
    assert best < 0.05
