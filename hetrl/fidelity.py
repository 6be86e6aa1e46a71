"""Seeded values for a model's inputs, and how far one set of outputs is from another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hetrl.graph import OperatorGraph
from hetrl.graph.single import Array


def seeded_inputs(graph: OperatorGraph, seed: int) -> dict[str, Array]:
    """Values for a model's inputs, the same for the same seed: standard normal floats, integers of 0 and 1."""
    inputs: dict[str, Array] = {}
    for index, name in enumerate(graph.inputs):
        tensor, draw = graph.tensor_by_name[name], np.random.default_rng([seed, index])
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
