"""Whole networks in torch: the same outputs as in ONNX Runtime, in batches as well, and back into the same graph."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hetrl.compress.weights import arrays
from hetrl.errors import ModelError
from hetrl.fidelity import largest_error
from hetrl.finetune.batching import batched_shape
from hetrl.finetune.network import Network, read_network
from hetrl.finetune.predictor import predictor
from hetrl.finetune.trainable import running_statistics, trainable_weights
from hetrl.graph.wiring import label
from hetrl.zoo.networks import blueprint
from tests.test_torch_operators import in_torch, runtime
from tests.trainable_models import NETWORKS, exported

EXPORTS = [(name, 13, False) for name in NETWORKS] + [(name, 20, True) for name in NETWORKS]


def pictures(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 3, size, size)).astype(np.float32)


def one_step(network: Network, batch: int) -> None:
    """Forward, backward, and a small step, in training mode."""
    network.module.train()
    outputs = network.module(torch.tensor(pictures(batch)))
    loss = sum((output * torch.randn(output.shape)).sum() for output in outputs)
    loss.backward()
    torch.optim.SGD(network.module.parameters(), 1e-2).step()


@pytest.mark.parametrize(("name", "opset", "folded"), EXPORTS)
def test_the_same_as_the_runtime_before_and_after_training(tmp_path: Path, name: str, opset: int, folded: bool) -> None:
    model = exported(name, tmp_path, opset=opset, folded=folded)
    network, x = read_network(model), pictures(1)
    assert largest_error(in_torch(network.module, x), runtime(model, {"data": x})) < 1e-4

    many = [torch.tensor(pictures(4))]
    assert predictor(network.model, network.module, many, 4).batched
    torch.manual_seed(0)
    one_step(network, 4)
    idle = [n for n, p in network.module.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert idle == []

    trained, old = network.trained(), arrays(network.model)
    moved = {name for name, value in arrays(trained).items() if not np.array_equal(value, old[name])}
    # A scale or bias whose gradient cancels stays; whatever is no weight stays for certain.
    assert moved <= trainable_weights(network.model) | running_statistics(network.model)
    assert running_statistics(network.model) <= moved
    onnx.checker.check_model(trained, full_check=True)
    assert largest_error(in_torch(network.module, x), runtime(trained, {"data": x})) < 1e-4
    assert [label(n) for n in trained.graph.node] == [label(n) for n in network.model.graph.node]


@pytest.mark.parametrize(
    ("name", "size"), [("fst", 64), ("posenet", 64), ("regnetx_1_6gf", 64), ("resnet18", 64), ("retinaface", 160)]
)
def test_networks_of_the_zoo_on_small_pictures(name: str, size: int) -> None:
    """All of them, on pictures of full size: experiments/finetune_networks.py."""
    model = blueprint(name).with_weights(0)
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = size
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    network, x = read_network(model), pictures(1, size)
    assert largest_error(in_torch(network.module, x), runtime(model, {"data": x})) < 1e-4
    stored = {tensor.name for tensor in model.graph.initializer}
    assert {n for n, _ in network.module.named_parameters()} == stored - running_statistics(model)


def test_what_the_default_exporter_of_torch_writes(tmp_path: Path) -> None:
    """More of them: experiments/finetune_networks.py."""
    model = exported("swin", tmp_path, opset=20, dynamo=True)
    network, x = read_network(model), pictures(1)
    assert largest_error(in_torch(network.module, x), runtime(model, {"data": x})) < 1e-4
    assert predictor(network.model, network.module, [torch.tensor(pictures(4))], 4).batched


@pytest.mark.parametrize("name", ["googlenet", "vit", "shufflenet", "unet", "sequence", "swin"])
def test_an_open_batch_with_computed_shapes(tmp_path: Path, name: str) -> None:
    model, x = exported(name, tmp_path, opset=16, batch="n"), pictures(5)
    network = read_network(model)
    predict = predictor(network.model, network.module, [torch.tensor(x)], 4)
    assert predict.batched and not predict.exact
    got = dict(zip(network.module.output_names, predict([torch.tensor(x)]), strict=True))
    assert largest_error({n: value.numpy() for n, value in got.items()}, runtime(model, {"data": x})) < 1e-4


def test_a_graph_for_four_takes_four_at_once(tmp_path: Path) -> None:
    model = exported("densenet", tmp_path, batch=4)
    network = read_network(model)
    predict = predictor(network.model, network.module, [torch.tensor(pictures(6))], 32)
    assert predict.exact and predict.batch == 4
    x = pictures(6)
    wanted = np.concatenate([*runtime(model, {"data": x[:4]}).values(), *runtime(model, {"data": x[2:]}).values()])
    (got,) = predict([torch.tensor(x)])
    np.testing.assert_allclose(got, wanted[[0, 1, 2, 3, 6, 7]], atol=1e-5)


# What is trained


def graph_of(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: tuple[int, ...]) -> onnx.ModelProto:
    """A model from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(op: str, inputs: str, output: str, **attributes: int | list[int]) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def test_constants_of_the_network_stay() -> None:
    mask = np.where(np.tri(4), 0, -1e9).astype(np.float32)
    weights = {
        "mean": floats(3),
        "deviation": floats(3),
        "w": floats(3, 4),
        "b": floats(4),
        "half": floats(1),
        "layer_scale": floats(4),
        "mask": mask,
        "turned": floats(5, 4),
        "back_scale": floats(5),
        "back_shift": floats(5),
    }
    nodes = [
        node("Sub", "x mean", "centred"),
        node("Mul", "centred deviation", "normal"),
        node("MatMul", "normal w", "p"),
        node("Add", "b p", "q"),
        node("Mul", "q half", "r"),
        node("Mul", "r layer_scale", "s"),
        node("Add", "s mask", "t"),
        node("Transpose", "turned", "turned_t"),
        node("MatMul", "t turned_t", "u"),
        node("Mul", "u back_scale", "v"),
        node("Add", "v back_shift", "y"),
    ]
    assert trainable_weights(graph_of(nodes, weights, (4, 3))) == {"w", "b", "layer_scale", "turned"}


def test_statistics_that_an_exporter_stored_once_part() -> None:
    """Fresh networks have the same numbers everywhere: one tensor for all scales, one for biases and means."""
    weights = {"one": np.ones(3, np.float32), "zero": np.zeros(3, np.float32), "w": floats(3, 3, 1, 1)}
    nodes = [
        node("Identity", "one", "var2"),
        node("Conv", "x w", "a"),
        node("BatchNormalization", "a one zero zero one", "b"),
        node("Conv", "b w", "c"),
        node("BatchNormalization", "c one zero zero var2", "y"),
    ]
    network = read_network(graph_of(nodes, weights, (1, 3, 4, 4)))
    assert {n for n, _ in network.module.named_parameters()} == {"one", "zero", "w"}
    assert running_statistics(network.model) == {"b.mean", "b.variance", "y.mean", "y.variance"}
    network.module.train()(torch.tensor(pictures(8, 4)))
    first, second = (arrays(network.trained())[f"{name}.mean"] for name in "by")
    assert np.abs(first).max() > 0 and not np.allclose(first, second)


def test_weights_in_constant_nodes_are_trained() -> None:
    weight = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(floats(3, 2)))
    network = read_network(graph_of([weight, node("MatMul", "x w", "y")], {}, (1, 3)))
    assert [n for n, _ in network.module.named_parameters()] == ["w"]


def test_half_precision_is_trained_in_single_and_stored_as_it_was() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), node("MatMul", "h w", "y")]
    network = read_network(graph_of(nodes, {"w": floats(3, 2).astype(np.float16)}, (1, 3)))
    assert next(network.module.parameters()).dtype == torch.float32
    assert arrays(network.trained())["w"].dtype == np.float16


def test_what_cannot_be_trained_is_said() -> None:
    with pytest.raises(ModelError, match="no weights that could be trained"):
        read_network(graph_of([node("Relu", "x", "y")], {}, (1, 3)))
    norm = node("BatchNormalization", "x s s s s", "y", training_mode=1)
    with pytest.raises(ModelError, match=r"'y' \(BatchNormalization\) is in training mode"):
        read_network(graph_of([norm], {"s": floats(3)}, (1, 3)))


# Batches


def factors(draw: st.DrawFn, total: int) -> list[int]:
    """Sizes without 1 whose product is `total`."""
    found = []
    while total > 1:
        size = draw(st.sampled_from([d for d in range(2, total + 1) if total % d == 0]))
        found.append(size)
        total //= size
    return found


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    """One sample's shape, the axis of its batch, and what it is reshaped to."""
    before, after = draw(st.sampled_from([1, 2, 4, 6])), draw(st.sampled_from([2, 4, 6, 12]))
    left, right = factors(draw, before), factors(draw, after)
    one = (*left, 1, *right)
    target_right = factors(draw, after)
    merged = draw(st.booleans())  # the batch joins the axis behind it
    return one, len(left), (*factors(draw, before), *([] if merged else [1]), *target_right)


@given(reshapes())
def test_samples_stay_apart_in_a_written_shape(case: tuple[tuple[int, ...], int, tuple[int, ...]]) -> None:
    one, axis, target = case
    batch = 5
    samples = [torch.arange(math.prod(one)).reshape(one) + 1000 * i for i in range(batch)]
    x = torch.cat(samples, axis)
    shape = batched_shape(tuple(x.shape), one, target)
    assert shape is not None
    place = next(i for i in range(len(target)) if shape[i] != target[i])
    wanted = torch.cat([sample.reshape(target) for sample in samples], place)
    assert torch.equal(x.reshape(shape), wanted)


def test_shapes_that_tell_no_batch() -> None:
    assert batched_shape((1, 4), (1, 4), (4,)) is None  # one sample
    assert batched_shape((3, 5), (1, 4), (4,)) is None  # two axes have grown
    assert batched_shape((2, 9), (2, 3), (3, 2)) is None  # no place behind two elements
