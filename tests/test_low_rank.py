"""Layers of low rank: what is factored, into what, how exactly, and what stays."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from hetrl.compress.low_rank import Factored, LowRank, Scheme, factor
from hetrl.compress.low_rank.schemes import Chain, Dense, Narrow, Spatial, Tucker
from hetrl.compress.running import run_all
from hetrl.compress.weights import arrays, complete_model
from hetrl.errors import ModelError, UsageError
from hetrl.graph.reader import graph_from_model
from hetrl.zoo.builder import Blueprint, Builder
from hetrl.zoo.networks import blueprint
from hetrl.zoo.source import FileSource
from tests.compress_help import decaying, error_between, model_of, normal
from tests.torch_models import GoogLeNetLike, MobileNetLike, ViTLike, export

FULL = 10**6  # a rank that no layer has
SCHEMES = list(Scheme)
CHAINS: list[Chain] = [
    Dense((24, 40)), Dense((40, 24)), Narrow((16, 12, 3, 3)), Narrow((40, 3, 1, 1)), Narrow((9, 4, 5)),
    Spatial((16, 12, 3, 5)), Tucker((16, 12, 3, 3)), Tucker((20, 3, 2, 3)), Tucker((6, 40, 1, 3)), Tucker((8, 6, 3)),
]  # fmt: skip


def conv_net(**attributes: object) -> onnx.ModelProto:
    """Two convolutions, activations, a third with the given attributes and a bias, a dense layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["stem"], pads=[1] * 4),
        helper.make_node("Relu", ["stem"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["middle"], name="the_middle", **attributes),
        helper.make_node("Relu", ["middle"], ["r1"]),
        helper.make_node("GlobalAveragePool", ["r1"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w2", "b2"], ["hidden"], transB=1),
        helper.make_node("Gemm", ["hidden", "w3"], ["logits"]),
    ]
    weights = {
        "w0": normal(8, 3, 3, 3), "w1": decaying(16, 8, 3, 3), "b1": normal(16), "w2": decaying(32, 16),
        "b2": normal(32), "w3": normal(32, 10),
    }  # fmt: skip
    return model_of(nodes, {"x": (2, 3, 13, 11)}, ["logits"], weights)


def several_strides() -> Blueprint:
    net = Builder("net")
    x = net.activation(net.conv(net.input("data", (1, 3, 33, 33)), "conv0", 16, 5, stride=2), "relu0")
    x = net.activation(net.batch_norm(net.conv(x, "conv1", 24, 3, stride=2, bias=False), "bn1"), "relu1")
    x = net.add(x, net.conv(net.conv(x, "conv2", 48, 1), "conv3", 24, (1, 3)), "sum")
    x = net.global_pool(net.conv(x, "conv4", 32, 3), "pool")
    return net.finish(net.gemm(net.gemm(net.flatten(x, "flat"), "hidden", 64), "logits", 10))


def names(done: Factored) -> dict[str, str]:
    return {layer.name: layer.scheme for layer in done.report.factored}


def reasons(done: Factored) -> dict[str, str]:
    return {layer.name: layer.reason for layer in done.report.left}


# Numbers


@pytest.mark.parametrize("chain", CHAINS, ids=lambda c: f"{type(c).__name__}{c.shape}")
@pytest.mark.parametrize("trained", [False, True])
def test_frobenius_errors_fall_with_the_rank_down_to_nothing(chain: Chain, trained: bool) -> None:
    weights = (decaying if trained else normal)(*chain.shape).astype(np.float64)
    parts, total = chain.parts(weights), float((weights**2).sum())
    errors = []
    for rank in range(1, max(chain.full) + 1):
        ranks = chain.by_rank(rank)
        links = parts.arrays(ranks)
        assert [link.shape for link in links] == [f.shape for f in chain.factors(ranks)]
        errors.append(float(((weights - multiplied(chain, links)) ** 2).sum()) / total)
        assert parts.kept(ranks) == pytest.approx(1 - errors[-1], abs=1e-9)
    assert all(more <= less + 1e-12 for less, more in itertools.pairwise(errors))
    assert errors[-1] < 1e-12 < errors[0]


def multiplied(chain: Chain, links: list[np.ndarray]) -> np.ndarray:
    """The weights that a chain stands for, written out once more."""
    if isinstance(chain, Dense):
        return links[0] @ links[1]
    if isinstance(chain, Tucker):
        into, core, outof = (link.reshape(*link.shape[:2], -1) for link in links)
        return np.einsum("ri,qrk,oq->oik", into[:, :, 0], core, outof[:, :, 0]).reshape(chain.shape)
    if isinstance(chain, Spatial):
        return np.einsum("rih,orw->oihw", links[0][..., 0], links[1][:, :, 0])
    return np.einsum("ri...,or->oi...", links[0], links[1].reshape(links[1].shape[:2]))


@pytest.mark.parametrize("chain", CHAINS, ids=lambda c: f"{type(c).__name__}{c.shape}")
def test_an_energy_is_kept_with_the_fewest_weights(chain: Chain) -> None:
    parts = chain.parts(decaying(*chain.shape))
    counts = []
    for energy in (0.3, 0.7, 0.9, 0.99, 1.0):
        ranks = parts.ranks_for(energy)
        assert parts.kept(ranks) >= energy - 1e-9
        for position, rank in enumerate(ranks):
            fewer = tuple(r - (p == position) for p, r in enumerate(ranks))
            assert rank == 1 or parts.kept(fewer) < energy
        counts.append(chain.weights(ranks))
    assert counts == sorted(counts)


@given(st.sampled_from(CHAINS), st.floats(0.01, 0.99))
def test_a_share_of_weights_is_not_exceeded(chain: Chain, keep: float) -> None:
    ranks = chain.by_share(keep)
    assert set(ranks) == {1} or min(ranks) == 1 or chain.weights(ranks) <= keep * math.prod(chain.shape)
    assert all(rank <= most for rank, most in zip(ranks, chain.full, strict=True))


def test_weights_of_zero_and_of_half_precision() -> None:
    parts = Narrow((4, 4, 3, 3)).parts(np.zeros((4, 4, 3, 3), np.float16))
    assert parts.ranks_for(0.9) == (1,) and parts.kept((1,)) == 1.0
    assert all(np.isfinite(link).all() for link in parts.arrays((2,)))
    assert Tucker((4, 4, 3, 3)).parts(np.zeros((4, 4, 3, 3))).kept((1, 1)) == 1.0


# Models


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 1, 1, 1]},
        {"strides": [2, 3], "pads": [0, 2, 1, 0], "dilations": [2, 1], "kernel_shape": [3, 3]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [1, 3]},
        {"auto_pad": "VALID"},
    ],
    ids=["plain", "strided", "same_upper", "same_lower", "valid"],
)
def test_full_rank_gives_the_same_output_and_less_rank_a_larger_error(
    scheme: Scheme, attributes: dict[str, object]
) -> None:
    model = conv_net(**attributes)
    before = model.SerializeToString(deterministic=True)
    whole = factor(model, LowRank(rank=FULL, scheme=scheme, always=True))
    onnx.checker.check_model(whole.model, full_check=True)
    assert names(whole) == {"stem": scheme, "middle": scheme, "hidden": "svd", "logits": "svd"}
    assert error_between(model, whole.model) < 1e-4
    few, more = (factor(model, LowRank(rank=rank, scheme=scheme, always=True)).model for rank in (1, 4))
    assert error_between(model, few) > error_between(model, more) > 1e-4
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("trained", [False, True])
def test_outputs_come_nearer_with_the_rank(scheme: Scheme, trained: bool) -> None:
    weight = (decaying if trained else normal)(12, 12, 3, 3)
    model = model_of([helper.make_node("Conv", ["x", "w"], ["y"])], {"x": (4, 12, 26, 26)}, ["y"], {"w": weight})
    x = {"x": normal(4, 12, 26, 26)}
    exact = run_all(model, [x])[0]["y"]
    errors = []
    for rank in (1, 2, 4, 6, 9, 12, 24, 36):
        y = run_all(factor(model, LowRank(rank=rank, scheme=scheme, always=True)).model, [x])[0]["y"]
        errors.append(float(((y - exact) ** 2).mean()))
    distinct = errors if scheme is Scheme.SPATIAL else errors[:6]  # 36 columns; of 12 channels no more than 12
    assert distinct == sorted(distinct, reverse=True)
    assert errors[-1] < 1e-8 * errors[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_planned_without_weights_is_what_is_made_with_them(scheme: Scheme) -> None:
    network, policy = several_strides(), LowRank(keep=0.3, scheme=scheme)
    planned, made = (factor(model, policy) for model in (network.model, network.with_weights(0)))
    assert [n.SerializeToString() for n in planned.model.graph.node] == [
        n.SerializeToString() for n in made.model.graph.node
    ]
    assert planned.report.left == made.report.left
    whole, small, real = (graph_from_model(model, name="n") for model in (network.model, planned.model, made.model))
    assert (small.macs, small.parameters) == (real.macs, real.parameters)
    layers = planned.report.factored
    assert all(layer.energy is None for layer in layers)
    assert all(0 < (layer.energy or 0) < 1 for layer in made.report.factored)
    assert whole.macs - small.macs == sum(before - after for before, after in (layer.macs for layer in layers))
    saved = sum(before - after for before, after in (layer.weights for layer in layers))
    assert whole.parameters - small.parameters == saved > 0.5 * whole.parameters
    assert {t.name: t.shape for t in whole.tensors}.items() <= {t.name: t.shape for t in small.tensors}.items()
    onnx.checker.check_model(made.model, full_check=True)


def test_an_energy_needs_weights() -> None:
    with pytest.raises(ModelError, match="--seeded-weights"):
        factor(blueprint("resnet18").model, LowRank(energy=0.9))


@pytest.mark.parametrize("module", [ViTLike, MobileNetLike, GoogLeNetLike])
def test_networks_from_torch(module: type[torch.nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export(module(), tmp_path / "m.onnx", (1, 3, 32, 32))
    model = complete_model(FileSource(path))
    whole = factor(model, LowRank(rank=FULL, scheme=Scheme.TUCKER, always=True))
    onnx.checker.check_model(whole.model, full_check=True)
    assert error_between(model, whole.model) < 1e-4
    small = factor(model, LowRank(keep=0.4))
    onnx.checker.check_model(small.model, full_check=True)
    before, after = (graph_from_model(m, name="m") for m in (model, small.model))
    assert after.macs < before.macs and after.parameters < before.parameters
    assert set(before.node_index) <= set(after.node_index)
    assert 1e-4 < error_between(model, small.model) < 2


def test_weights_may_be_turned_constant_shared_and_inputs() -> None:
    w, shared = decaying(32, 24), decaying(24, 24, seed=1)
    constant = helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(shared, "value"))
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        constant,
        helper.make_node("Identity", ["c"], ["same"]),
        helper.make_node("MatMul", ["x", "same"], ["a"]),
        helper.make_node("Relu", ["a"], ["ra"]),
        helper.make_node("MatMul", ["ra", "c"], ["b"]),
        helper.make_node("MatMul", ["b", "wt"], ["d"]),
        helper.make_node("Reshape", ["d", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "g"], ["e"], transA=1, alpha=0.5),
        helper.make_node("Softmax", ["e"], ["y"]),
    ]
    weights = {"w": w, "g": decaying(14, 40), "shape": np.array([14, -1])}
    model = model_of(nodes, {"x": (2, 7, 24)}, ["y"], weights, opset=13)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, w.shape))
    whole = factor(model, LowRank(rank=FULL, always=True))
    onnx.checker.check_model(whole.model, full_check=True)
    assert [i.name for i in whole.model.graph.input] == ["x"]
    assert names(whole).keys() == {"a", "d", "e"}
    model.graph.input.pop()
    assert error_between(model, whole.model) < 1e-4
    done = factor(model, LowRank(keep=0.5))
    shared_layer, turned = done.report.factored
    assert shared_layer.macs[0] == 2 * 14 * 24 * 24 and shared_layer.weights[0] == 24 * 24
    assert {n.op_type for n in done.model.graph.node} == {"MatMul", "Relu", "Gemm", "Reshape", "Softmax"}
    assert turned.name == "d" and reasons(done) == {"e": "the classifier"}
    graph = graph_from_model(done.model, name="n")
    assert graph.parameters == graph_from_model(model, name="n").parameters - 2 * (576 - shared_layer.weights[1]) - (
        768 - turned.weights[1]
    )


def test_new_names_are_free_and_the_last_link_has_the_old_one() -> None:
    model = conv_net(pads=[1] * 4)
    model.graph.node[3].output[0] = "middle.rank"
    model.graph.node[4].input[0] = "middle.rank"
    model.graph.initializer[2].name = "w1.wide"
    model.graph.node[2].input[2] = "w1.wide"
    done = factor(model, LowRank(keep=0.5))
    onnx.checker.check_model(done.model, full_check=True)
    links = [node for node in done.model.graph.node if node.op_type == "Conv"][1:]
    assert [list(link.input) for link in links] == [["r0", "w1.narrow"], ["middle.rank_2", "w1.wide_2", "w1.wide"]]
    assert [list(link.output) for link in links] == [["middle.rank_2"], ["middle"]]
    assert links[-1].name == "the_middle"
    again = factor(model, LowRank(keep=0.5)).model
    assert again.SerializeToString(deterministic=True) == done.model.SerializeToString(deterministic=True)


def test_what_stays_says_why() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["stem"], pads=[1] * 4),
        helper.make_node("Conv", ["stem", "dw"], ["depthwise"], group=8),
        helper.make_node("Conv", ["depthwise", "gw"], ["grouped"], group=2),
        helper.make_node("ConvTranspose", ["grouped", "tw"], ["up"]),
        helper.make_node("Conv", ["up", "tiny"], ["small"]),
        helper.make_node("Mul", ["tied", "half"], ["computed"]),
        helper.make_node("Conv", ["small", "tied"], ["tied_conv"]),
        helper.make_node("Conv", ["tied_conv", "computed"], ["other"]),
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Transpose", ["other"], ["turned"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["left", "turned"], ["product"]),
        helper.make_node("MatMul", ["product", "batch"], ["batched"]),
        helper.make_node("MatMul", ["batched", "last"], ["y"]),
    ]
    weights = {
        "w0": normal(8, 3, 3, 3), "dw": normal(8, 1, 3, 3), "gw": normal(8, 4, 3, 3), "tw": normal(8, 2, 3, 3),
        "tiny": normal(2, 2, 1, 1), "tied": normal(2, 2, 3, 3), "half": np.float32(0.5), "left": normal(7, 8),
        "batch": normal(8, 2, 9), "last": normal(9, 20),
    }  # fmt: skip
    model = model_of(nodes, {"x": (1, 3, 14, 14)}, ["y"], weights)
    done = factor(model, LowRank(keep=0.5, scheme=Scheme.TUCKER))
    assert not done.report.factored
    found = reasons(done)
    assert list(found) == [
        "stem", "depthwise", "grouped", "up", "small", "tied_conv", "other", "product", "batched", "y",
    ]  # fmt: skip
    assert found["stem"] == "the first convolution" and found["y"] == "the classifier"
    assert found["depthwise"] == "depthwise convolution" and found["grouped"] == "grouped convolution"
    assert found["up"] == "the operator ConvTranspose is not factored"
    assert found["small"] == "at rank 1 it would have 4 weights instead of 4"
    assert found["tied_conv"] == "its weights are read by other operators too"
    assert found["other"] == "its weights are computed or quantized"
    assert found["product"] == "its weights are the left factor" and found["batched"] == "its weights have 3 axes"
    assert done.model.graph == model.graph


def test_a_chain_that_costs_more_work_than_it_saves_is_not_made() -> None:
    """Tucker's first link runs before the stride."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[4, 4])
    model = model_of(
        [helper.make_node("Conv", ["data", "s"], ["x"]), node],
        {"data": (1, 2, 33, 33)},
        ["y"],
        {"s": normal(16, 2, 1, 1), "w": normal(16, 16, 3, 3)},
    )
    done = factor(model, LowRank(rank=12, scheme=Scheme.TUCKER))
    assert "multiply-accumulates instead of" in reasons(done)["y"]
    assert factor(model, LowRank(rank=4, scheme=Scheme.NARROW)).report.factored


def test_old_gemms_and_symbolic_batches() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v", "c"], ["y"]),
    ]
    weights = {"w": decaying(24, 20), "b": normal(24), "v": normal(24, 4), "c": normal(4)}
    model = model_of(nodes, {"x": ("N", 20)}, ["y"], weights, opset=9)
    done = factor(model, LowRank(keep=0.6), input_shapes={"x": (3, 20)})
    assert [node.op_type for node in done.model.graph.node] == ["MatMul", "Gemm", "Relu", "Gemm"]
    onnx.checker.check_model(done.model)
    assert done.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert done.report.factored[0].macs[0] == 3 * 20 * 24
    left, right = (arrays(done.model)[name] for name in done.report.factored[0].factors)
    approximation = left.T @ right.T if left.shape[0] < left.shape[1] else left @ right
    assert np.linalg.norm(approximation.T - weights["w"]) < 0.5 * np.linalg.norm(weights["w"])


@settings(max_examples=25)
@given(st.data())
def test_any_convolution_survives_full_rank(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    out, channels = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))

    def sizes(low: int, high: int, count: int = axes) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    attributes = {"strides": sizes(1, 3), "dilations": sizes(1, 2), "pads": sizes(0, 2, 2 * axes)}
    window = sizes(1, 3)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)
    weights = {"w": normal(out, channels, *window), "b": normal(out)}
    model = model_of([node], {"x": (2, channels, *sizes(5, 7))}, ["y"], weights)
    done = factor(model, LowRank(rank=FULL, scheme=data.draw(st.sampled_from(SCHEMES)), always=True))
    assert error_between(model, done.model) < 1e-4
    (layer,) = done.report.factored
    assert layer.macs[1] == graph_from_model(done.model, name="n").macs
    assert layer.macs[0] == graph_from_model(model, name="n").macs


# Policies


@pytest.mark.parametrize(
    "amount",
    [{}, {"keep": 0.0}, {"keep": 1.0}, {"keep": math.nan}, {"energy": 0.0}, {"energy": 1.1}, {"rank": 0},
     {"keep": 0.5, "energy": 0.5}, {"energy": 0.5, "rank": 3}, {"energy": math.nan}],
)  # fmt: skip
def test_amounts_that_make_no_sense(amount: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        LowRank(**amount)  # type: ignore[arg-type]
