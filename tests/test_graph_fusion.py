"""Fusion groups: what must hold for any graph, and the patterns that matter."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hetrl import zoo
from hetrl.graph import FusionGroup, InputRole, OperatorGraph, OpKind
from hetrl.graph.reader import graph_from_model

Shape = tuple[int, ...]


class Net:
    """Collects nodes; knows shapes as far as the random graphs need them."""

    def __init__(self, *shape: int) -> None:
        self.shapes: dict[str, Shape] = {"x": shape or (1, 8, 6, 6)}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = self.random.standard_normal(shape).astype(np.float32) / math.sqrt(math.prod(shape[1:]))
        return name

    def vector(self, *numbers: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.array(numbers, np.int64)
        return name

    def add(self, op_type: str, inputs: list[str], shape: Shape | None = None, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        self.shapes[name] = self.shapes[inputs[0]] if shape is None else shape
        return name

    def conv(self, x: str, channels: int = 8, kernel: int = 3, stride: int = 1, groups: int = 1) -> str:
        n, c, h, w = self.shapes[x]
        pad = kernel // 2
        out = [(size + 2 * pad - kernel) // stride + 1 for size in (h, w)]
        weight = self.weight(channels, c // groups, kernel, kernel)
        return self.add("Conv", [x, weight], (n, channels, *out), strides=[stride] * 2, pads=[pad] * 4, group=groups)

    def norm(self, x: str) -> str:
        channels = self.shapes[x][1]
        self.weights["ones"] = self.weights.get("ones", np.ones(channels, np.float32))
        return self.add("BatchNormalization", [x, *["ones"] * 4])

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shapes["x"])],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, self.shapes[o]) for o in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)

    def graph(self, *outputs: str) -> OperatorGraph:
        return graph_from_model(self.model(*outputs), name="net")


def patterns(graph: OperatorGraph) -> list[str]:
    return ["+".join(graph.nodes[n].op_type for n in group.nodes) for group in graph.groups]


def roles(group: FusionGroup) -> list[tuple[str, str]]:
    return [(i.tensor, i.role.value) for i in group.inputs]


def test_convolution_takes_what_follows() -> None:
    net = Net()
    y = net.add("HardSwish", [net.norm(net.conv("x"))])
    z = net.add("Relu", [net.add("Add", [net.norm(net.conv(y)), y])])
    graph = net.graph(z)
    assert patterns(graph) == ["Conv+BatchNormalization+HardSwish", "Conv+BatchNormalization+Add+Relu"]
    assert roles(graph.groups[1]) == [(y, "window"), (y, "aligned")][:1]
    assert all(group.splits_height and group.splits_channels for group in graph.groups)


def test_the_later_of_two_convolutions_takes_the_add() -> None:
    net = Net()
    first, second = net.conv("x"), net.conv("x")
    graph = net.graph(net.add("Relu", [net.add("Add", [first, second])]))
    assert patterns(graph) == ["Conv", "Conv+Add+Relu"]
    assert roles(graph.groups[1]) == [("x", "window"), (first, "aligned")]


def test_a_group_takes_only_one_residual_add() -> None:
    net = Net()
    one, two, three = net.conv("x"), net.conv("x"), net.conv("x")
    both = net.add("Add", [one, three])
    graph = net.graph(net.add("Add", [both, two]))
    assert patterns(graph) == ["Conv", "Conv+Add", "Conv+Add"]
    assert roles(graph.groups[2]) == [("x", "window"), (both, "aligned")]
    graph = net.graph(net.add("Add", [net.add("Add", [both, "x"]), "x"]))
    assert patterns(graph) == ["Conv", "Conv+Add", "Add+Add"]


def test_a_graph_output_is_never_hidden() -> None:
    net = Net()
    middle = net.conv("x")
    graph = net.graph(net.add("Relu", [middle]), middle)
    assert patterns(graph) == ["Conv", "Relu"]


def test_diamonds_fuse() -> None:
    net = Net()
    x = net.conv("x")
    silu = net.add("Mul", [x, net.add("Sigmoid", [x])])
    half = net.weight(1)
    erf = net.add("Erf", [net.add("Div", [silu, half])])
    gelu = net.add("Mul", [net.add("Mul", [silu, net.add("Add", [erf, half])]), half])
    assert patterns(net.graph(gelu)) == ["Conv+Sigmoid+Mul+Div+Erf+Add+Mul+Mul"]


def test_squeeze_and_excite_reads_the_gate_whole() -> None:
    net = Net()
    x = net.add("Relu", [net.conv("x")])
    pooled = net.add("GlobalAveragePool", [x], (1, 8, 1, 1))
    gate = net.add("Sigmoid", [net.conv(pooled, kernel=1)])
    graph = net.graph(net.add("Mul", [x, gate]))
    assert patterns(graph) == ["Conv+Relu", "GlobalAveragePool", "Conv+Sigmoid", "Mul"]
    assert roles(graph.groups[3]) == [(x, "aligned"), (gate, "whole")]
    assert [g.splits_height for g in graph.groups] == [True, False, False, False]


def test_views_go_with_their_reader_or_their_source() -> None:
    net = Net()
    kept = net.add("Identity", ["x"])
    x = net.add("Relu", [net.conv(kept)])
    flat = net.add("Flatten", [net.add("Dropout", [x])], (1, 288))
    dense = net.add("Gemm", [flat, net.weight(288, 4)], (1, 4))
    graph = net.graph(net.add("Reshape", [dense, net.vector(2, 2)], (2, 2)))
    assert patterns(graph) == ["Identity+Conv+Relu+Dropout", "Flatten+Gemm+Reshape"]
    assert roles(graph.groups[0]) == [("x", "window")]
    assert roles(graph.groups[1])[0][1] == "whole"
    assert graph.groups[0].splits_height
    assert not graph.groups[1].splits_channels


def test_dense_after_flatten_splits_its_channels() -> None:
    net = Net()
    flat = net.add("Flatten", ["x"], (1, 288))
    (group,) = net.graph(net.add("Relu", [net.add("Gemm", [flat, net.weight(288, 4)], (1, 4))])).groups
    assert group.splits_channels
    assert not group.splits_height


def test_pointwise_runs() -> None:
    net = Net()
    x = net.add("Exp", [net.add("Mul", [net.add("Add", ["x", "x"]), net.weight(8, 1, 1)])])
    graph = net.graph(net.add("Concat", [x, x], (1, 16, 6, 6), axis=1))
    assert patterns(graph) == ["Add+Mul+Exp", "Concat"]
    assert roles(graph.groups[0]) == [("x", "aligned")]
    assert graph.groups[0].splits_height
    assert graph.groups[0].splits_channels


def test_what_may_be_split() -> None:
    def only(net: Net, output: str) -> tuple[bool, bool]:
        (group,) = net.graph(output).groups
        return group.splits_height, group.splits_channels

    net = Net()
    assert only(net, net.conv("x")) == (True, True)
    net = Net()
    assert only(net, net.conv("x", groups=8)) == (True, True)
    net = Net()
    assert only(net, net.conv("x", groups=2)) == (True, False)
    net = Net()
    assert only(net, net.add("MaxPool", ["x"], (1, 8, 3, 3), kernel_shape=[2, 2], strides=[2, 2])) == (True, True)
    net = Net()
    transposed = net.add("ConvTranspose", ["x", net.weight(8, 4, 2, 2)], (1, 4, 12, 12), strides=[2, 2])
    assert only(net, transposed) == (False, True)
    net = Net()
    assert only(net, net.add("GlobalAveragePool", ["x"], (1, 8, 1, 1))) == (False, False)
    net = Net()
    assert only(net, net.add("Softmax", ["x"])) == (False, False)
    net = Net(1, 4, 6, 6)
    assert only(net, net.add("Relu", ["x"])) == (True, False)
    net = Net()
    assert only(net, net.add("Add", [net.conv("x"), net.weight(1, 8, 6, 1)])) == (False, True)
    net = Net(3, 8)
    assert only(net, net.add("Relu", ["x"])) == (False, False)


@st.composite
def nets(draw: st.DrawFn) -> tuple[Net, list[str]]:
    """A random graph of up to 14 operators over few tensors, so that much is shared; any tensor may be an output."""
    net = Net()
    steps = draw(st.integers(1, 14))
    for _ in range(steps):
        names = list(net.shapes)
        x = draw(st.sampled_from(names[-4:]))
        shape = net.shapes[x]
        partners = [name for name in names if net.shapes[name] == shape]
        simple = ["Relu", "Sigmoid", "Identity", "Add", "Mul", "scale", "Softmax"]
        image = ["conv", "conv1", "conv2", "depthwise", "norm", "MaxPool", "gap", "Flatten", "Concat", "gate"]
        choice = draw(st.sampled_from(simple + (image if len(shape) == 4 else ["Unsqueeze", "gemm"])))
        match choice:
            case "Relu" | "Sigmoid" | "Identity" | "Softmax":
                net.add(choice, [x])
            case "Add" | "Mul":
                net.add(choice, draw(st.permutations([x, draw(st.sampled_from(partners))])))
            case "scale":
                net.add("Mul", [x, net.weight(1)])
            case "conv" | "conv1" | "conv2":
                net.conv(x, kernel=1 if choice == "conv1" else 3, stride=2 if choice == "conv2" else 1)
            case "depthwise":
                net.conv(x, channels=shape[1], groups=shape[1])
            case "norm" if shape[1] == 8:
                net.norm(x)
            case "MaxPool":
                net.add("MaxPool", [x], kernel_shape=[3, 3], pads=[1] * 4)
            case "gap":
                net.add("GlobalAveragePool", [x], (*shape[:2], 1, 1))
            case "gate":
                net.add("Mul", [x, net.add("ReduceMean", [x, net.vector(2, 3)], (*shape[:2], 1, 1))])
            case "Flatten":
                net.add("Flatten", [x], (1, math.prod(shape)))
            case "Unsqueeze":
                net.add("Reshape", [x, net.vector(1, shape[1], 1, 1)], (1, shape[1], 1, 1))
            case "gemm":
                net.add("Gemm", [x, net.weight(shape[1], 8)], (1, 8))
            case "Concat":
                partner = draw(st.sampled_from(partners))
                net.add("Concat", [x, partner], (shape[0], 2 * shape[1], *shape[2:]), axis=1)
            case _:
                net.add("Relu", [x])
    made = [name for name in net.shapes if name != "x"]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    return net, outputs


@given(nets())
@settings(max_examples=100)
def test_groups_of_any_graph(case: tuple[Net, list[str]]) -> None:
    net, outputs = case
    graph = net.graph(*outputs)
    assert sorted(n for group in graph.groups for n in group.nodes) == list(range(len(graph.nodes)))
    assert [group.index for group in graph.groups] == list(range(len(graph.groups)))
    made_at = {tensor: index for index, node in enumerate(graph.nodes) for tensor in node.outputs}
    assert all(made_at.get(tensor, -1) < index for index, node in enumerate(graph.nodes) for tensor in node.inputs)
    for group in graph.groups:
        assert list(group.nodes) == sorted(group.nodes)
        assert group.anchor in group.nodes
        assert group.outputs == graph.nodes[group.nodes[-1]].outputs
        for member in group.nodes[:-1]:
            readers = [i for i, n in enumerate(graph.nodes) if set(n.inputs) & set(graph.nodes[member].outputs)]
            assert readers
            assert set(readers) <= set(group.nodes)
            assert not set(graph.nodes[member].outputs) & set(graph.outputs)
        inside = {tensor for member in group.nodes for tensor in graph.nodes[member].outputs}
        external = {tensor for member in group.nodes for tensor in graph.nodes[member].inputs} - inside
        assert len(group.inputs) == len(external)
        assert {i.tensor for i in group.inputs} == external
        # Whatever is read from another group is that group's exit, and that group comes earlier.
        assert all(graph.producer_group.get(tensor, -1) < group.index for tensor in external)
        assert all(tensor in graph.producer_group or tensor in graph.inputs for tensor in external)
        if group.splits_height:
            assert InputRole.WHOLE not in {i.role for i in group.inputs}
        exit_shape = graph.tensor_by_name[group.outputs[0]].shape
        assert all(
            graph.tensor_by_name[i.tensor].shape == exit_shape for i in group.inputs if i.role is InputRole.ALIGNED
        )
    assert nx.is_directed_acyclic_graph(_contracted(graph))


def _contracted(graph: OperatorGraph) -> nx.DiGraph:
    result = nx.DiGraph()
    result.add_nodes_from(range(len(graph.groups)))
    owner = graph.group_of_node
    made_at = {tensor: index for index, node in enumerate(graph.nodes) for tensor in node.outputs}
    for index, node in enumerate(graph.nodes):
        sources = {owner[made_at[t]] for t in node.inputs if t in made_at} - {owner[index]}
        result.add_edges_from((source, owner[index]) for source in sources)
    return result


@given(nets(), st.data())
@settings(max_examples=60)
def test_convexity_equals_brute_force(case: tuple[Net, list[str]], data: st.DataObject) -> None:
    net, outputs = case
    graph = net.graph(*outputs)
    members = data.draw(st.sets(st.integers(0, len(graph.groups) - 1)))
    contracted = _contracted(graph)
    assert [set(contracted.predecessors(g)) for g in contracted] == [set(p) for p in graph.predecessors]
    between = {
        node
        for node in set(contracted) - members
        if nx.ancestors(contracted, node) & members and nx.descendants(contracted, node) & members
    }
    assert graph.is_convex(members) == (not between)


@given(nets())
@settings(max_examples=25)
def test_a_band_of_rows_needs_only_what_the_roles_say(case: tuple[Net, list[str]]) -> None:
    """Changing input rows outside the window or the aligned band never changes the band of a group that splits."""
    net, outputs = case
    graph = net.graph(*outputs)
    for group in graph.groups:
        height = graph.tensor_by_name[group.outputs[0]].shape[2] if group.splits_height else 0
        if height < 2:
            continue
        top, bottom = height // 2, height
        session, inputs = _group_session(net, graph, group)
        changed = {i.tensor: _spoilt(inputs[i.tensor], _rows(graph, group, i.role, top, bottom)) for i in group.inputs}
        before, after = (session.run(None, feed)[0] for feed in (inputs, changed))
        np.testing.assert_array_equal(before[:, :, top:bottom], after[:, :, top:bottom])


def _rows(graph: OperatorGraph, group: FusionGroup, role: InputRole, top: int, bottom: int) -> tuple[int, int]:
    g = graph.group_geometry(group.index)
    if role is InputRole.ALIGNED or g.kind not in (OpKind.CONV, OpKind.POOL):
        return top, bottom
    first = top * g.stride_h - g.pad_top
    last = (bottom - 1) * g.stride_h - g.pad_top + (g.kernel_h - 1) * g.dilation_h
    return max(first, 0), min(last + 1, g.in_h)


def _spoilt(array: np.ndarray, rows: tuple[int, int]) -> np.ndarray:
    """The array with everything outside the rows replaced."""
    result = np.full_like(array, 7.0)
    result[:, :, rows[0] : rows[1]] = array[:, :, rows[0] : rows[1]]
    return result


def _group_session(
    net: Net, graph: OperatorGraph, group: FusionGroup
) -> tuple[onnxruntime.InferenceSession, dict[str, np.ndarray]]:
    ids = {graph.nodes[n].id for n in group.nodes}
    nodes = [node for node in net.nodes if node.output[0] in ids]
    infos = [
        helper.make_tensor_value_info(i.tensor, TensorProto.FLOAT, graph.tensor_by_name[i.tensor].shape)
        for i in group.inputs
    ]
    used = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(array, name) for name, array in net.weights.items() if name in used]
    part = helper.make_graph(nodes, "part", infos, [onnx.ValueInfoProto(name=group.outputs[0])], weights)
    model = helper.make_model(part, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    random = np.random.default_rng(1)
    inputs = {
        i.tensor: random.standard_normal(graph.tensor_by_name[i.tensor].shape).astype(np.float32) for i in group.inputs
    }
    return onnxruntime.InferenceSession(model.SerializeToString(), options), inputs


@pytest.mark.parametrize("name", zoo.names())
def test_networks_of_the_zoo_fuse(name: str) -> None:
    graph = zoo.resolve_model(name)
    for group in graph.groups:
        geometry = graph.group_geometry(group.index)
        glue = (OpKind.COPY, OpKind.RESIZE) if name in ("yolov2", "posenet", "fst", "retinaface") else ()
        assert geometry.kind in (OpKind.CONV, OpKind.POOL, OpKind.GLOBAL_POOL, OpKind.GEMM, *glue)
        if geometry.kind is OpKind.CONV:
            assert group.splits_height
            assert group.splits_channels == (geometry.groups == 1 or geometry.depthwise)
    assert sum(graph.group_macs(group.index) for group in graph.groups) == graph.macs
    assert graph.is_convex(set(range(len(graph.groups))))
