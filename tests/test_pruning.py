"""Pruned models are valid and run, are as small as planned, and lose nothing but the channels that were taken."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from hetrl import zoo
from hetrl.compress.pruning import prune
from hetrl.compress.stages import stages
from hetrl.compress.weights import arrays
from hetrl.graph.reader import graph_from_model
from tests import torch_models
from tests.pruning_help import Net, check_pruned, models, run
from tests.torch_networks import NETWORKS

EXPORTED: dict[str, Callable[[], torch.nn.Module]] = {
    "MobileNetLike": torch_models.MobileNetLike,
    "GoogLeNetLike": torch_models.GoogLeNetLike,
    "ViTLike": torch_models.ViTLike,
    **NETWORKS,
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], onnx.ModelProto]:
    folder = tmp_path_factory.mktemp("models")

    def export(name: str) -> onnx.ModelProto:
        path = folder / f"{name}.onnx"
        if not path.exists():
            torch.manual_seed(0)
            torch_models.export(EXPORTED[name](), path, (1, 3, 32, 32))
        return onnx.load(path)

    return export


@pytest.mark.parametrize("name", EXPORTED)
def test_what_torch_exports(exported: Callable[[str], onnx.ModelProto], name: str) -> None:
    model = exported(name)
    before = model.SerializeToString(deterministic=True)
    report = check_pruned(model, 0.7, multiple=2).report
    assert report.parameters[1] / report.parameters[0] < (
        0.6 if name in ("ViTLike", "DecoderLike", "EncoderLike") else 0.5
    )
    assert model.SerializeToString(deterministic=True) == before
    assert prune(model, 0.1, multiple=1).report.macs[1] > report.macs[1]


def test_a_built_in_network() -> None:
    model = zoo.build("fst", seeded_weights=0, size=(32, 32))
    report = check_pruned(model, 0.5).report
    assert report.parameters[1] < 0.3 * report.parameters[0]
    assert [group.name for group in report.whole] == ["image"]


@given(models(), st.sampled_from([0.3, 0.5, 0.7]), st.sampled_from([1, 2, 4]))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_models_of_supported_operators(model: onnx.ModelProto, ratio: float, multiple: int) -> None:
    check_pruned(model, ratio, multiple)


def test_parts_that_cannot_be_pruned_say_so_and_the_rest_is() -> None:
    net = Net()
    first = net.conv("data", 3, 8, 3)
    rows = net.add("Reshape", net.add("Transpose", first, perm=[2, 3, 0, 1]), net.integers(36, 1, 8))
    rows = net.add("LSTM", rows, net.weight(1, 16, 8), net.weight(1, 16, 4), hidden_size=4)
    second = net.conv(net.add("Reshape", rows, net.integers(1, 4, 6, 6)), 4, 8)
    third, fourth = net.conv(second, 8, 8), net.conv(net.add("Relu", second), 8, 12)
    probabilities, last = net.add("LogSoftmax", third, axis=1), net.conv(fourth, 12, 4)
    report = check_pruned(net.model(probabilities, last), 0.5).report
    assert {group.name: group.reason for group in report.whole} == {
        first: "'lstm3' (LSTM) is not understood",
        third: f"'{probabilities}' (LogSoftmax) runs along it",
        last: f"the graph returns it as '{last}'",
    }
    changed = {part.group.name: part.kept for part in report.groups if part.kept < part.group.size}
    assert changed == {second: 4, fourth: 8}


def test_names_and_metadata_stay() -> None:
    net = Net()
    x = net.add("Relu", net.conv("data", 3, 8, 3))
    model = net.model(net.conv(x, 8, 4))
    for number, node in enumerate(model.graph.node):
        node.name = f"node {number}"
    model.producer_name = "someone"
    model.metadata_props.add(key="for", value="test")
    assert model.graph.value_info
    small = prune(model, 0.5).model
    assert [(n.name, n.output[0]) for n in small.graph.node] == [(n.name, n.output[0]) for n in model.graph.node]
    assert [tensor.name for tensor in small.graph.initializer] == [tensor.name for tensor in model.graph.initializer]
    assert (small.producer_name, small.metadata_props[0].value) == ("someone", "test")
    assert not small.graph.value_info
    assert small.graph.output == model.graph.output


@pytest.mark.parametrize("version", [9, 11, 13, 18])
def test_old_and_new_forms_of_operators(version: int) -> None:
    """Bounds and sizes are attributes in old versions, operands in new ones."""
    net = Net(version=version)
    x = net.conv("data", 3, 12, 3)
    if version < 10:
        part = net.add("Slice", x, starts=[2], ends=[9], axes=[1])
    else:
        part = net.add("Slice", x, net.integers(2), net.integers(9), net.integers(1))
    if version < 13:
        two = net.add("Split", x, outputs=3, axis=1, split=[4, 4, 4])
        mean = net.add("ReduceMean", two, axes=[2, 3], keepdims=1)
    else:
        two = net.add("Split", x, net.integers(4, 4, 4), outputs=3, axis=1)
        mean = net.add("GlobalAveragePool", two)
    x = net.add("Concat", part, net.add("Mul", f"{two}.2", mean), axis=1)
    check_pruned(net.model(net.conv(x, 11, 4)), 0.5, 1)


def test_shared_weights_are_shared_still() -> None:
    net = Net()
    x = net.conv("data", 3, 8, 3)
    weight, bias = net.weight(8, 8, 3, 3), net.vector(8)
    for _ in range(2):
        x = net.add("Relu", net.add("Conv", x, weight, bias, pads=[1] * 4))
    pruned = check_pruned(net.model(net.conv(x, 8, 4)), 0.5)
    assert arrays(pruned.model)[weight].shape == (4, 4, 3, 3)
    assert {node.input[1] for node in pruned.model.graph.node if weight in node.input} == {weight}


def test_a_vector_that_several_read_is_copied_where_they_need_different_parts() -> None:
    net = Net()
    bias = net.vector(8)
    one = net.add("Conv", "data", net.weight(8, 3, 1, 1), bias)
    two = net.add("Conv", "data", net.weight(8, 3, 1, 1), bias)
    whole = net.add("Conv", "data", net.weight(8, 3, 1, 1), bias)
    model = net.model(net.conv(net.add("Concat", one, two, axis=1), 16, 4), whole)
    small = prune(model, 0.5).model
    onnx.checker.check_model(small, full_check=True)
    sizes = sorted(arrays(small)[node.input[2]].shape[0] for node in small.graph.node[:3])
    assert sizes == [4, 4, 8]


def test_weights_stored_as_int8_stay_so() -> None:
    net = Net(version=13)
    weight = net.constant(net.random.integers(-127, 127, (8, 3, 3, 3)).astype(np.int8))
    scale, zero = net.vector(8), net.constant(np.zeros(8, np.int8))
    wide = net.add("DequantizeLinear", weight, scale, zero, axis=0)
    x = net.add("Relu", net.add("Conv", "data", wide, pads=[1] * 4))
    small = prune(net.model(net.conv(x, 8, 4)), 0.5).model
    onnx.checker.check_model(small, full_check=True)
    found = arrays(small)
    narrow = next(node for node in small.graph.node if node.op_type == "DequantizeLinear")
    assert [(found[name].dtype, found[name].shape) for name in narrow.input] == [
        (np.dtype(np.int8), (4, 3, 3, 3)),
        (np.dtype(np.float32), (4,)),
        (np.dtype(np.int8), (4,)),
    ]
    run(small)


def test_numbers_computed_from_shapes_stay_what_they_were() -> None:
    """A scale by the square root of the number of channels does not follow when channels go; a reshape does."""
    net = Net()
    x = net.conv("data", 3, 16, 3)
    size = net.add("Shape", x)
    channels = net.add("Gather", size, net.integers(1), axis=0)
    x = net.add("Div", x, net.add("Sqrt", net.add("Cast", channels, to=TensorProto.FLOAT)))
    flat = net.add("Concat", net.integers(1), channels, net.integers(36), axis=0)
    x = net.add("Reshape", net.add("Reshape", x, flat), size)
    check_pruned(net.model(net.conv(x, 16, 4)), 0.5)


def test_open_batches_stay_open(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    torch.manual_seed(0)
    module = NETWORKS["ShuffleNetLike"]().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes, names = {"data": {0: "n"}}, ["data"]
        torch.onnx.export(
            module, (torch.zeros(2, 3, 32, 32),), path, input_names=names, dynamo=False, dynamic_axes=axes
        )
    pruned = prune(onnx.load(path), 0.5, input_shapes={"data": (1, 3, 32, 32)})
    onnx.checker.check_model(pruned.model, full_check=True)
    batch = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    (together,) = run(pruned.model, {"data": batch})
    single = [run(pruned.model, {"data": one[None]})[0] for one in batch]
    np.testing.assert_allclose(together, np.concatenate(single), rtol=1e-4, atol=1e-5)


def test_sizes_that_must_be_fixed_are() -> None:
    """Expand to a size computed from a pruned tensor."""
    net = Net()
    net.input.type.tensor_type.shape.dim[0].dim_param = "n"
    x = net.conv("data", 3, 8, 3)
    x = net.add("Concat", x, net.add("Expand", net.weight(1, 1, 6, 6), net.add("Shape", x)), axis=1)
    pruned = prune(net.model(net.conv(x, 16, 4)), 0.5, input_shapes={"data": (1, 3, 6, 6)})
    onnx.checker.check_model(pruned.model, full_check=True)
    for size in pruned.model.graph.input[0].type.tensor_type.shape.dim:
        assert size.dim_value > 0
    run(pruned.model)


def test_control_flow_keeps_what_it_reads() -> None:
    net = Net()
    x = net.conv("data", 3, 8, 3)
    branches = {}
    for name, op_type in (("then_branch", "Relu"), ("else_branch", "Neg")):
        value = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, (1, 8, 6, 6))
        branches[name] = helper.make_graph([helper.make_node(op_type, [x], [f"{name}.y"])], name, [], [value])
    total = net.add("ReduceSum", "data", keepdims=0)
    x = net.add("If", net.add("Greater", total, net.constant(np.array(0, np.float32))), **branches)
    report = check_pruned(net.model(net.conv(net.conv(x, 8, 8), 8, 4)), 0.5).report
    reasons = {group.name: group.reason for group in report.whole}
    assert reasons["conv0"] == "'if3' (If) is not understood"
    assert next(part for part in report.groups if part.group.name == "conv4").kept == 4


def test_gates_belong_to_the_stage_they_gate(exported: Callable[[str], onnx.ModelProto]) -> None:
    graph = graph_from_model(exported("SqueezeLike"), name="net")
    assert [(stage.resolution, len(stage.groups)) for stage in stages(graph)] == [(256, 3), (64, 3)]
