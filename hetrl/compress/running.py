"""Complete models in memory, run in ONNX Runtime on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import onnx

from hetrl.compress.weights import LARGEST_INLINE_BYTES, save_model
from hetrl.errors import MissingExtra, ModelError
from hetrl.graph.single import Array

EXTRA = "host"


def has_runtime() -> bool:
    """Whether ONNX Runtime is installed."""
    return find_spec("onnxruntime") is not None


def require_runtime(feature: str) -> None:
    """Nothing is imported.

    :param feature: what needs it.
    :raises MissingExtra: ONNX Runtime is not installed.
    """
    if not has_runtime():
        raise MissingExtra(feature, EXTRA)


def run_all(model: onnx.ModelProto, samples: Iterable[Mapping[str, Array]]) -> list[dict[str, Array]]:
    """The model's outputs, by name, for each sample.

    :raises MissingExtra: ONNX Runtime is not installed.
    :raises ModelError: it does not take the model, or fails to run it.
    """
    require_runtime("running a model")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # its errors are raised as well
    with tempfile.TemporaryDirectory() as folder:
        loaded: bytes | str
        if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_INLINE_BYTES:
            loaded = str(Path(folder) / "model.onnx")
            save_model(model, Path(loaded))
        else:
            loaded = model.SerializeToString()
        try:
            session = ort.InferenceSession(loaded, options, providers=["CPUExecutionProvider"])
            names = [output.name for output in session.get_outputs()]
            return [dict(zip(names, session.run(None, dict(sample)), strict=True)) for sample in samples]
        except Exception as error:  # its exceptions have no common base
            raise ModelError(f"ONNX Runtime cannot run the model: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an exception of ONNX Runtime says, in few words."""
    return " ".join(str(error).split())[:200] or type(error).__name__
