"""What a partitioned model has to compute: the whole model's outputs in ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from hetrl.errors import MissingExtra, ModelError
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
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            names = [output.name for output in session.get_outputs()]
            return dict(zip(names, session.run(None, dict(inputs)), strict=True))
        except Exception as error:  # the runtime has many kinds of its own
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"ONNX Runtime cannot run {source.name!r}: {reason}") from error
