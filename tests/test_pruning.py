"""Pruned models are valid and run, are as small as planned, and lose nothing but the channels that were taken."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hetrl import zoo
from hetrl.compress.importance import Importance
from hetrl.compress.pruning import prune
from hetrl.compress.stages import by_name, by_stage, stages
from hetrl.compress.weights import arrays, with_arrays
from hetrl.errors import UnknownName, UsageError
from hetrl.graph.reader import graph_from_model
from tests import torch_models
from tests.pruning_help import Net, check_pruned, difference, models, run
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
    shares = [check_pruned(model, ratio, multiple=2).report for ratio in (0.3, 0.7)]
    parameters = [report.parameters[1] / report.parameters[0] for report in shares]
    assert 1 > parameters[0] > parameters[1] > 0
    assert parameters[1] < (0.6 if name in ("ViTLike", "DecoderLike", "EncoderLike") else 0.5)
    assert model.SerializeToString(deterministic=True) == before
    for group in shares[0].whole:
        assert group.reason


def test_a_built_in_network() -> None:
    model = zoo.build("resnet18", seeded_weights=0, size=(64, 64))
    report = check_pruned(model, 0.5).report
    assert report.parameters[1] < 0.3 * report.parameters[0]
    assert [group.name for group in report.whole] == ["logits"]


@given(models(), st.sampled_from([0.3, 0.5, 0.7]), st.sampled_from([1, 2, 4]))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
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


def chain(*, norm: bool = False) -> tuple[onnx.ModelProto, str]:
    """A convolution of eight channels, the weights of number k being k + 1, and one more; the name of the weights."""
    net = Net()
    weight = net.constant(np.ones((8, 3, 3, 3), np.float32) * (1 + np.arange(8, dtype=np.float32))[:, None, None, None])
    x = net.add("Conv", "data", weight, pads=[1] * 4)
    if norm:
        factors = net.constant(np.array([1, -9, 2, 9, 1, 8, 1, -7], np.float32))
        x = net.add("BatchNormalization", x, factors, *(net.vector(8) for _ in range(3)))
    return net.model(net.conv(net.add("Relu", x), 8, 4)), weight


def taken(pruned: onnx.ModelProto, original: onnx.ModelProto, weight: str) -> list[int]:
    kept = arrays(pruned)[weight].mean((1, 2, 3)).round(3).tolist()
    return [k for k, w in enumerate(arrays(original)[weight].mean((1, 2, 3)).round(3).tolist()) if w not in kept]


def test_importance() -> None:
    model, weight = chain()
    for importance in (Importance.L1, Importance.L2):
        assert taken(prune(model, 0.5, importance=importance).model, model, weight) == [0, 1, 2, 3]
    signs = arrays(model)[weight].copy()
    signs[:, :, 0] *= -1
    model = with_arrays(model, {weight: signs[::-1].copy()})
    assert taken(prune(model, 0.5).model, model, weight) == [4, 5, 6, 7]
    model, weight = chain(norm=True)
    assert taken(prune(model, 0.5, importance=Importance.BATCH_NORM).model, model, weight) == [0, 2, 4, 6]


def test_importance_by_one_large_weight() -> None:
    """The mean square sees a single large weight where the mean absolute value sees many."""
    model, weight = chain()
    values = np.full((8, 3, 3, 3), 0.5, np.float32)
    values[:4] = 0.01
    values[:4, 0, 0, 0] = [6, 7, 8, 9]
    model = with_arrays(model, {weight: values + np.arange(8)[:, None, None, None].astype(np.float32) * 1e-3})
    assert taken(prune(model, 0.5).model, model, weight) == [0, 1, 2, 3]
    assert taken(prune(model, 0.5, importance=Importance.L2).model, model, weight) == [4, 5, 6, 7]


def test_importance_by_activation() -> None:
    """A channel behind Relu that is never above zero carries nothing, however large its weights."""
    model, weight = chain()
    values = arrays(model)[weight].copy()
    values[4:] *= -1
    model = with_arrays(model, {weight: values})
    inputs = [{"data": np.random.default_rng(seed).uniform(size=(1, 3, 6, 6)).astype(np.float32)} for seed in (0, 1)]
    small = prune(model, 0.5, importance=Importance.ACTIVATION, inputs=inputs).model
    assert taken(small, model, weight) == [4, 5, 6, 7]
    assert difference(run(model, inputs[0]), run(small, inputs[0])) < 1e-5
    with pytest.raises(UsageError, match="needs inputs"):
        prune(model, 0.5, importance=Importance.ACTIVATION)


def test_equal_channels_go_from_the_last() -> None:
    model, weight = chain()
    model = with_arrays(model, {weight: np.ones((8, 3, 3, 3), np.float32)})
    (removed, *_) = prune(model, 0.5).removed
    assert (removed.constant, removed.axis, removed.places) == (weight, 0, (4, 5, 6, 7))


def test_layers_of_different_scales_count_alike() -> None:
    """Of a sum's two makers the one with weights of 100 does not drown the other."""
    net = Net()
    small = np.array([9, 9, 9, 9, 1, 1, 1, 1], np.float32)[:, None, None, None]
    large = np.array([101, 101, 101, 101, 100, 100, 104, 104], np.float32)[:, None, None, None]
    one, two = (net.add("Conv", "data", net.constant(np.tile(w, (1, 3, 1, 1)))) for w in (small, large))
    model = net.model(net.conv(net.add("Add", one, two), 8, 4))
    assert prune(model, 0.5).removed[0].places == (4, 5, 6, 7)


def test_stages() -> None:
    graph = zoo.resolve_model("vgg16")
    parts = stages(graph)
    assert [(stage.name, stage.resolution) for stage in parts] == [
        ("s0", 224**2),
        ("s1", 112**2),
        ("s2", 56**2),
        ("s3", 28**2),
        ("s4", 14**2),
        ("s5", 1),
    ]
    prunable = [index for index, group in enumerate(graph.channels.groups) if group.reason is None]
    assert sorted(index for stage in parts for index in stage.groups) == prunable


@pytest.mark.parametrize("name", zoo.names())
def test_every_network_has_few_stages(name: str) -> None:
    graph = zoo.resolve_model(name)
    parts = stages(graph)
    assert 1 <= len(parts) <= 6
    assert [stage.resolution for stage in parts] == sorted({stage.resolution for stage in parts}, reverse=True)
    assert len({index for stage in parts for index in stage.groups}) == len(graph.channels.prunable)


def test_gates_belong_to_the_stage_they_gate(exported: Callable[[str], onnx.ModelProto]) -> None:
    graph = graph_from_model(exported("SqueezeLike"), name="net")
    assert [(stage.resolution, len(stage.groups)) for stage in stages(graph)] == [(256, 3), (64, 3)]


def test_a_ratio_per_stage_or_group() -> None:
    net = Net()
    x = net.add("Relu", net.conv("data", 3, 8, 3))
    x = net.add("MaxPool", net.conv(x, 8, 12, 3), kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Relu", net.conv(x, 12, 20))
    model = net.model(net.conv(x, 20, 4))
    graph = graph_from_model(model, name="net")

    def kept(ratios: tuple[float, ...]) -> list[int]:
        return [part.kept for part in prune(model, ratios, multiple=1).report.groups]

    assert kept(by_stage(graph, (0.5, 0.25))) == [4, 6, 15, 4]
    assert kept(by_name(graph, {"s0": 0.5, "conv2": 0.75})) == [4, 3, 20, 4]
    assert kept(by_name(graph, {}, default=0.5)) == [4, 6, 10, 4]
    with pytest.raises(UsageError, match="2 stages, and 3 ratios"):
        by_stage(graph, (0.1, 0.2, 0.3))
    with pytest.raises(UnknownName):
        by_name(graph, {"s7": 0.5})
    with pytest.raises(UsageError, match="4 groups"):
        prune(model, (0.5,))


@pytest.mark.parametrize("ratio", [1.0, -0.1, math.nan])
def test_senseless_ratios(ratio: float) -> None:
    model, _ = chain()
    with pytest.raises(UsageError):
        prune(model, ratio)
    with pytest.raises(UsageError):
        prune(model, 0.5, multiple=0)


def test_nothing_to_take_leaves_the_model() -> None:
    model, _ = chain()
    assert prune(model, 0.0).model is model
    assert prune(model, 0.1, multiple=8).report.parameters[0] == prune(model, 0.1, multiple=8).report.parameters[1]


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


def test_weights_that_are_inputs_too() -> None:
    """Before version 4 of the format every initializer was."""
    model, weight = chain()
    model.ir_version = 3
    model.opset_import[0].version = 8
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    small = prune(model, 0.5).model
    assert numpy_helper.to_array(next(t for t in small.graph.initializer if t.name == weight)).shape[0] == 4
    assert difference(run(small), run(small)) == 0
