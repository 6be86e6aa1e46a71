"""Activations of a model on calibration inputs, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec

import onnx

from hetrl.compress.constants import Array
from hetrl.errors import MissingExtra

_SESSION_OUTPUTS = 64  # tensors fetched from one run: they are all in memory at a time


def fetched(
    model: onnx.ModelProto, names: Sequence[str], inputs: Iterable[Mapping[str, Array]]
) -> Iterator[tuple[str, Array]]:
    """Each named activation for each batch of inputs.

    :raises MissingExtra: there is no ONNX Runtime.
    """
    if find_spec("onnxruntime") is None:
        raise MissingExtra("running a model to calibrate it", "host")
    batches = list(inputs)
    for begin in range(0, len(names), _SESSION_OUTPUTS):
        part = list(names[begin : begin + _SESSION_OUTPUTS])
        session = _session(model, part)
        for batch in batches:
            yield from zip(part, session.run(part, dict(batch)), strict=True)


def _session(model: onnx.ModelProto, names: Sequence[str]):  # type: ignore[no-untyped-def]
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
