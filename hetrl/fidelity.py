"""Seeded values for a model's inputs, and how far one set of outputs is from another, and may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx

from hetrl.errors import ModelError
from hetrl.graph import Node, OperatorGraph
from hetrl.graph.single import Array

MAX_OUTPUT_ERROR = 1e-3  # largest difference over largest value, of fp32 engines that calculate in another order
MAX_QUANTIZED_ERROR = 5e-2
"""The same of models that quantize activations: engines round some numbers a step (0.4 %) up that others round down."""
MAX_OF_PRECISION = {"fp16": 1e-2, "bf16": 5e-2}
"""The same by what a processor calculates in; bfloat16 rounds to 8 bits, 0.4 % at most each time."""
_DENSE = ("MatMul", "Gemm")
_QUANTIZING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"})


def quantizes(graph: OperatorGraph) -> bool:
    """Whether activations are rounded to integers on their way.

    By the model, or by a runtime: ONNX Runtime does so where a dense layer's weights are int8 (its MatMulNBits).
    """
    return any(node.op_type in _QUANTIZING or _narrow_dense(node) for node in graph.nodes)


def rounds(model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime rounds activations to integers in a model: see `quantizes`."""
    widened = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return any(
        node.op_type in _QUANTIZING or (node.op_type in _DENSE and not widened.isdisjoint(node.input))
        for node in model.graph.node
    )


def _narrow_dense(node: Node) -> bool:
    return node.op_type in _DENSE and 0 < node.weight_bytes < 2 * node.weight_elements


def usual_output_error(graph: OperatorGraph) -> float:
    """How far outputs of a plan may be off from those of the model run whole where nobody says it."""
    return allowed_error((), quantized=quantizes(graph))


def allowed_error(precisions: Iterable[str], *, quantized: bool) -> float:
    """How far outputs may be off by what processors calculate in.

    :param quantized: see `quantizes`.
    """
    limits = [MAX_OF_PRECISION.get(precision, MAX_OUTPUT_ERROR) for precision in precisions]
    return max([*limits, MAX_QUANTIZED_ERROR if quantized else MAX_OUTPUT_ERROR])


def seeded_inputs(graph: OperatorGraph, seed: int) -> dict[str, Array]:
    """Values for a model's inputs, the same for the same seed: standard normal floats, integers of 0 and 1.

    :raises ModelError: an input takes no numbers.
    """
    inputs: dict[str, Array] = {}
    for index, name in enumerate(graph.inputs):
        tensor, draw = graph.tensor_by_name[name], np.random.default_rng([seed, index])
        if tensor.dtype == "string":
            raise ModelError(f"the input {name!r} is text, which no processor takes", "give a model of numbers")
        if tensor.dtype.startswith("float"):
            inputs[name] = draw.standard_normal(tensor.shape, dtype=np.float32).astype(tensor.dtype)
        else:
            inputs[name] = draw.integers(0, 2, tensor.shape).astype(tensor.dtype)
    return inputs


def largest_error(outputs: Mapping[str, Array], reference: Mapping[str, Array]) -> float:
    """Over all outputs, the largest difference over the reference's largest value; inf where one is not finite."""
    errors = [0.0]
    for name, value in outputs.items():
        exact = np.asarray(reference[name], np.float64)
        difference = np.abs(np.asarray(value, np.float64) - exact).max(initial=0)
        scale = np.abs(exact).max(initial=0)
        error = float(difference / scale) if scale > 0 else float(difference)
        errors.append(error if np.isfinite(error) else float("inf"))
    return max(errors)
