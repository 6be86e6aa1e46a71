"""Small models with weights inside, for tests of compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hetrl.compress.running import run_all
from hetrl.fidelity import largest_error, seeded_inputs
from hetrl.graph.reader import graph_from_model

Floats = np.ndarray


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    weights: Mapping[str, Floats],
    opset: int = 17,
) -> onnx.ModelProto:
    """A model whose outputs have whatever shape follows."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    del graph.output[:]
    graph.output.extend(onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output)
    model.graph.CopyFrom(graph)
    return model


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Floats:
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(np.float32)


def decaying(*shape: int, seed: int = 0, power: float = 1.5) -> Floats:
    """Weights like trained ones: the singular values of every unfolding fall like a power of their index."""
    kernel = normal(*shape, seed=seed).astype(np.float64)
    for axis, size in enumerate(shape):
        basis, _ = np.linalg.qr(np.random.default_rng([seed, axis, size]).standard_normal((size, size)))
        fall = (1 + np.arange(size)) ** -power
        kernel = np.moveaxis(np.tensordot((basis * fall) @ basis.T, kernel, (1, axis)), 0, axis)
    return (kernel / np.sqrt(np.mean(kernel**2))).astype(np.float32)


def error_between(one: onnx.ModelProto, other: onnx.ModelProto, seed: int = 0) -> float:
    """Largest difference of their outputs over the first one's largest value, on seeded inputs."""
    samples = [seeded_inputs(graph_from_model(one, name="net"), seed)]
    return largest_error(run_all(other, samples)[0], run_all(one, samples)[0])
