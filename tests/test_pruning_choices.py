"""Which channels are taken, and how many of which group: importance, stages, ratios."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from hetrl import zoo
from hetrl.compress.importance import Importance
from hetrl.compress.pruning import prune
from hetrl.compress.stages import by_name, by_stage, stages
from hetrl.compress.weights import arrays, with_arrays
from hetrl.errors import UnknownName, UsageError
from hetrl.graph.reader import graph_from_model
from tests.pruning_help import Net, difference, run


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
