"""What a partitioned model has to compute: the whole model's outputs in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from hetrl.errors import MissingExtra
from hetrl.graph import OperatorGraph
from hetrl.graph.single import Array
from hetrl.zoo.source import ModelSource

_EXTRAS = {"onnxruntime": "host", "openvino": "host", "ncnn": "ncnn"}


def require_engines(names: Iterable[str]) -> None:
    """Whether these engines are installed here; none is imported.

    :raises MissingExtra: naming the extra that brings the first that is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise MissingExtra(f"running plans with {name}", _EXTRAS[name])


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


def reference_outputs(source: ModelSource, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs, by name, of the model as it is, whole, in ONNX Runtime on the CPU.

    :raises MissingExtra: ONNX Runtime is not installed.
    :raises ModelError: weights are missing.
    """
    require_engines(["onnxruntime"])
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # its errors are raised as well
    with tempfile.TemporaryDirectory() as folder:
        path = source.save(Path(folder))
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(inputs)), strict=True))


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
