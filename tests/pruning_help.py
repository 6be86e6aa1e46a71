"""What tests of pruning share: random models of supported operators, zeroed channels, and a run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hetrl.compress.pruning import Pruned, prune
from hetrl.compress.weights import with_arrays
from hetrl.fidelity import seeded_inputs
from hetrl.graph import OperatorGraph
from hetrl.graph.reader import graph_from_model

Outputs = list[np.ndarray]


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray] | None = None) -> Outputs:
    """The model's outputs on seeded inputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: Outputs = session.run(None, inputs or seeded_inputs(graph_from_model(model, name="model"), 1))
    return results


def difference(one: Outputs, other: Outputs) -> float:
    """The largest difference over the largest value."""
    assert [a.shape for a in one] == [b.shape for b in other]
    return max(float(np.abs(a - b).max()) / max(float(np.abs(a).max()), 1e-6) for a, b in zip(one, other, strict=True))


def zeroed(model: onnx.ModelProto, pruned: Pruned) -> onnx.ModelProto:
    """The model with zeros for all that makes the channels that were taken; what reads them stays."""
    originals = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    copied = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    changed: dict[str, np.ndarray] = {}
    for removed in pruned.removed:
        if removed.taken:
            continue
        name = copied.get(removed.constant, removed.constant)
        if name in originals:
            array = changed.setdefault(name, originals[name].copy())
            array[(slice(None),) * removed.axis + (list(removed.places),)] = 0
    return with_arrays(model, changed)


def check_pruned(model: onnx.ModelProto, ratio: float, multiple: int = 4) -> Pruned:
    """Prune, and hold against the checker, the plan, ONNX Runtime, and the model with those channels zeroed."""
    pruned = prune(model, ratio, multiple=multiple)
    onnx.checker.check_model(pruned.model, full_check=True)
    made = graph_from_model(pruned.model, name="pruned")
    assert_same_network(made, pruned.graph)
    assert pruned.report.macs[1] == made.macs
    zeros = zeroed(model, pruned)
    again = prune(zeros, ratio, multiple=multiple)
    assert again.removed == pruned.removed
    inputs = seeded_inputs(made, 1)
    assert [a.shape for a in run(pruned.model, inputs)] == [a.shape for a in run(model, inputs)]
    assert difference(run(zeros, inputs), run(again.model, inputs)) < 1e-5
    return pruned


def assert_same_network(made: OperatorGraph, planned: OperatorGraph) -> None:
    """Names, shapes and costs, operator by operator."""
    assert made.tensors == planned.tensors
    for one, other in zip(made.nodes, planned.nodes, strict=True):
        assert (one.id, one.op_type, one.inputs, one.outputs) == (other.id, other.op_type, other.inputs, other.outputs)
        assert (one.geometry, one.macs, one.flops) == (other.geometry, other.macs, other.flops)
        assert one.weight_elements == other.weight_elements


class Net:
    """ONNX nodes one by one, with random weights; tensors are 1 x channels x 6 x 6."""

    def __init__(self, seed: int = 0, channels: int = 3, version: int = 21) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.version = version
        self.input = helper.make_tensor_value_info("data", TensorProto.FLOAT, (1, channels, 6, 6))

    def weight(self, *shape: int) -> str:
        fan_in = max(int(np.prod(shape[1:])), 1)
        return self.constant(self.random.normal(0, fan_in**-0.5, shape).astype(np.float32))

    def vector(self, size: int) -> str:
        return self.constant(self.random.uniform(0.5, 1.5, size).astype(np.float32))

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

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 1, group: int = 1) -> str:
        weight = self.weight(outputs, inputs // group, kernel, kernel)
        return self.add("Conv", x, weight, self.vector(outputs), pads=[kernel // 2] * 4, group=group)

    def model(self, *outputs: str, shape: tuple[int, ...] | None = None) -> onnx.ModelProto:
        infos = [helper.make_tensor_value_info(o, TensorProto.FLOAT, shape) for o in outputs]
        graph = helper.make_graph(self.nodes, "net", [self.input], infos, self.weights)
        bare = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.version)], ir_version=10)
        return onnx.shape_inference.infer_shapes(bare)


Step = Callable[[Net, str, int], tuple[str, int]]


def _residual(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.add("Add", x, net.conv(net.add("Relu", net.conv(x, c, 8, 3)), 8, c)), c


def _norm(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.add("BatchNormalization", x, *(net.vector(c) for _ in range(4))), c


def _grouped(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.conv(x, c, 2 * c, 3, group=2), 2 * c


def _depthwise(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.conv(x, c, 2 * c, 3, group=c), 2 * c


def _depthwise_transposed(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.add("ConvTranspose", x, net.weight(c, 2, 1, 1), net.vector(2 * c), group=c), 2 * c


def _grouped_transposed(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.add("ConvTranspose", x, net.weight(c, 4, 1, 1), net.vector(8), group=2), 8


def _dense_block(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.add("Concat", x, net.conv(x, c, 6, 3), axis=1), c + 6


def _swapped_halves(net: Net, x: str, c: int) -> tuple[str, int]:
    x = net.add("Split", x, outputs=2, axis=1, num_outputs=2)
    return net.add("Concat", f"{x}.1", x, axis=-3), c


def _gated_halves(net: Net, x: str, c: int) -> tuple[str, int]:
    x = net.add("Split", x, net.integers(c // 2, c // 2), outputs=2, axis=1)
    return net.add("Mul", x, net.add("Sigmoid", f"{x}.1")), c // 2


def _sliced(net: Net, x: str, c: int) -> tuple[str, int]:
    part = net.add("Slice", x, net.integers(2), net.integers(1000), net.integers(-3))
    return net.add("Concat", x, part, axis=1), 2 * c - 2


def _reversed(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.add("Gather", x, net.integers(*range(c - 1, -1, -1)), axis=1), c


def _shuffled(net: Net, x: str, c: int) -> tuple[str, int]:
    x = net.add("Reshape", x, net.integers(1, 2, c // 2, 6, 6))
    return net.add("Reshape", net.add("Transpose", x, perm=[0, 2, 1, 3, 4]), net.integers(0, c, 6, -1)), c


def _squeezed(net: Net, x: str, c: int) -> tuple[str, int]:
    hidden = net.add("Relu", net.conv(net.add("GlobalAveragePool", x), c, 6))
    return net.add("Mul", x, net.add("Sigmoid", net.conv(hidden, 6, c))), c


def _squeezed_dense(net: Net, x: str, c: int) -> tuple[str, int]:
    hidden = net.add("Relu", net.add("Gemm", net.add("Flatten", net.add("GlobalMaxPool", x)), net.weight(c, 6)))
    gate = net.add("HardSigmoid", net.add("MatMul", hidden, net.weight(6, c)))
    return net.add("Mul", net.add("Unsqueeze", gate, net.integers(2, 3)), x), c


def _channels_last(net: Net, x: str, c: int) -> tuple[str, int]:
    x = net.add("MatMul", net.add("Transpose", x, perm=[0, 2, 3, 1]), net.weight(c, 8))
    x = net.add("Tanh", net.add("Add", x, net.vector(8)))
    return net.add("Transpose", x, perm=[0, 3, 1, 2]), 8


def _attention(net: Net, x: str, c: int) -> tuple[str, int]:
    """Two heads of four over the pixels."""
    tokens = net.add("Transpose", net.add("Reshape", x, net.integers(1, c, 36)), perm=[0, 2, 1])
    three = net.add("Add", net.add("MatMul", tokens, net.weight(c, 24)), net.vector(24))
    three = net.add("Transpose", net.add("Reshape", three, net.integers(1, 36, 3, 2, 4)), perm=[2, 0, 3, 1, 4])
    q, k, v = (net.add("Gather", three, net.constant(np.array(i)), axis=0) for i in range(3))
    weights = net.add("Softmax", net.add("MatMul", q, net.add("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    mixed = net.add("Transpose", net.add("MatMul", weights, v), perm=[0, 2, 1, 3])
    mixed = net.add("MatMul", net.add("Reshape", mixed, net.integers(1, 36, 8)), net.weight(8, c))
    mixed = net.add("Reshape", net.add("Transpose", mixed, perm=[0, 2, 1]), net.integers(1, c, 6, 6))
    return net.add("Add", x, mixed), c


def _pointwise(net: Net, x: str, c: int) -> tuple[str, int]:
    x = net.add("PRelu", x, net.weight(c, 1, 1))
    return net.add("Mul", net.add("Div", x, net.vector(1)), net.weight(c, 1, 1)), c


def _normalized(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.add("InstanceNormalization", x, net.vector(c), net.vector(c)), c


def _groups_normalized(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.add("GroupNormalization", x, net.vector(c), net.vector(c), num_groups=2), c


def _groups_normalized_by_reshape(net: Net, x: str, c: int) -> tuple[str, int]:
    """As torch writes it."""
    ones, zeros = (net.constant(np.full(2, value, np.float32)) for value in (1, 0))
    x = net.add("InstanceNormalization", net.add("Reshape", x, net.integers(0, 2, -1)), ones, zeros)
    x = net.add("Reshape", x, net.integers(1, c, 6, 6))
    return net.add("Mul", x, net.weight(c, 1, 1)), c


def _padded(net: Net, x: str, c: int) -> tuple[str, int]:
    padded = net.add("Pad", x, net.integers(0, 1, 1, 0, 0, 2, 0, 1))
    return net.conv(net.add("MaxPool", padded, kernel_shape=[2, 2]), c + 3, 8), 8


def _einsum(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.add("Einsum", x, net.weight(c, 8), equation="nchw,cd->ndhw"), 8


def _resized(net: Net, x: str, c: int) -> tuple[str, int]:
    large = net.add("Resize", x, "", "", net.integers(1, c, 12, 12), mode="nearest")
    return net.add("AveragePool", large, kernel_shape=[2, 2], strides=[2, 2]), c


def _spread(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.add("SpaceToDepth", net.add("DepthToSpace", net.conv(x, c, 16), blocksize=2), blocksize=2), 16


def _local(net: Net, x: str, c: int) -> tuple[str, int]:
    return net.conv(net.add("LRN", x, size=3), c, 8), 8


STEPS: tuple[Step, ...] = (
    lambda net, x, c: (net.add("Relu", net.conv(x, c, 12, 3)), 12),
    lambda net, x, c: (net.add("LeakyRelu", net.add("ConvTranspose", x, net.weight(c, 8, 1, 1), net.vector(8))), 8),
    *(_residual, _norm, _grouped, _depthwise, _depthwise_transposed, _grouped_transposed, _dense_block),
    *(_swapped_halves, _gated_halves, _sliced, _reversed, _shuffled, _squeezed, _squeezed_dense, _channels_last),
    *(_attention, _pointwise, _normalized, _groups_normalized, _groups_normalized_by_reshape, _padded, _einsum),
    *(_resized, _spread, _local),
)


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """A convolution, up to five of the steps, and one of two heads."""
    net = Net(draw(st.integers(0, 99)))
    x, c = net.conv("data", 3, 8, 3), 8
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=5)):
        x, c = step(net, x, c)
        if c % 4 or c > 40:
            x, c = net.conv(x, c, 8), 8
    if draw(st.booleans()):
        x = net.add("Relu", net.add("Gemm", net.add("Flatten", x), net.weight(10, 36 * c), net.vector(10), transB=1))
        return net.model(net.add("MatMul", x, net.weight(10, 5)), shape=(1, 5))
    x = net.add("ReduceMean", net.conv(x, c, 12), net.integers(2, 3), keepdims=0)
    return net.model(net.add("Gemm", x, net.weight(12, 5), alpha=0.5), shape=(1, 5))
