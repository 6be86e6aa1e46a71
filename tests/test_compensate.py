"""Weights that take over what lost channels carried."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hetrl.compress.compensate import compensated, moments, products
from hetrl.compress.pruning import prune
from hetrl.compress.running import run_all
from hetrl.graph.reader import graph_from_model

SIZE, CHANNELS = 9, 16


def network(first: np.ndarray, second: np.ndarray, *, groups: int = 1, shared: bool = False) -> onnx.ModelProto:
    """conv - relu - conv - global mean - dense."""
    draw = np.random.default_rng(7)
    dense = draw.normal(size=(second.shape[0], 5)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], kernel_shape=first.shape[2:], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], kernel_shape=second.shape[2:], group=groups),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "dense"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])]
    if shared:
        nodes.append(helper.make_node("ReduceSum", ["second"], ["z"], keepdims=0))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, []))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, first.shape[1], SIZE, SIZE])],
        outputs,
        [numpy_helper.from_array(a, n) for a, n in ((first, "first"), (second, "second"), (dense, "dense"))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def samples(seed: int, count: int = 12) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(seed)
    return [{"x": draw.normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)} for _ in range(count)]


def doubled(seed: int) -> np.ndarray:
    """Kernels of which every second one is a smaller copy of the one before it."""
    draw = np.random.default_rng(seed)
    kernels = draw.normal(size=(CHANNELS, 3, 3, 3)).astype(np.float32)
    kernels /= np.abs(kernels).sum(axis=(1, 2, 3), keepdims=True)  # so that no copy outweighs an original
    kernels[1::2] = kernels[::2] * np.float32(0.5)
    return kernels


def error(model: onnx.ModelProto, other: onnx.ModelProto, seed: int) -> float:
    fresh = samples(seed)
    pairs = zip(run_all(model, fresh), run_all(other, fresh), strict=True)
    return max(float(np.abs(a["y"] - b["y"]).max() / np.abs(a["y"]).max()) for a, b in pairs)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_channels_that_others_can_stand_for_are_not_missed(seed: int) -> None:
    draw = np.random.default_rng(seed)
    model = network(doubled(seed), draw.normal(size=(8, CHANNELS, 3, 3)).astype(np.float32))
    graph = graph_from_model(model, name="net")
    known = moments(model, graph, samples(seed))
    ratios = [0.5 if group.size == CHANNELS else 0.0 for group in graph.channels.groups]
    plain = prune(model, ratios, multiple=1)
    fitted = prune(model, ratios, multiple=1, known=known)
    assert fitted.graph == plain.graph
    assert error(model, fitted.model, seed + 1) < 0.01 < error(model, plain.model, seed + 1)


def test_nothing_changes_where_nothing_goes() -> None:
    model = network(doubled(0), np.random.default_rng(1).normal(size=(8, CHANNELS, 3, 3)).astype(np.float32))
    graph = graph_from_model(model, name="net")
    known = moments(model, graph, samples(0))
    same = compensated(model, graph, np.ones(len(graph.channels.group_of), dtype=np.bool_), known)
    assert same == model


def test_products_that_read_channels_one_by_one_are_left_alone() -> None:
    second = np.random.default_rng(1).normal(size=(CHANNELS, 1, 3, 3)).astype(np.float32)
    model = network(doubled(0), second, groups=CHANNELS)
    assert [product.weight for product in products(model, graph_from_model(model, name="net"))] == ["dense"]


def test_weights_that_others_read_are_left_alone() -> None:
    second = np.random.default_rng(1).normal(size=(8, CHANNELS, 3, 3)).astype(np.float32)
    model = network(doubled(0), second, shared=True)
    assert "second" not in [product.weight for product in products(model, graph_from_model(model, name="net"))]


def test_silent_channels_change_nothing() -> None:
    """All that is kept is zero on every sample: there is nothing to be fitted."""
    silent = np.zeros((CHANNELS, 3, 3, 3), np.float32)
    model = network(silent, np.random.default_rng(1).normal(size=(8, CHANNELS, 3, 3)).astype(np.float32))
    graph = graph_from_model(model, name="net")
    fitted = prune(model, 0.5, known=moments(model, graph, samples(0)))
    weights = [numpy_helper.to_array(t) for t in fitted.model.graph.initializer]
    assert all(np.isfinite(w).all() for w in weights)
    assert not any(answer["y"].any() for answer in run_all(fitted.model, samples(3)))
