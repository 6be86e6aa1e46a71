"""Models with all of their weights in memory, on which compression works, and their files."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from hetrl.errors import ModelError, UsageError
from hetrl.zoo.source import ModelSource

Array = NDArray[np.generic]
LARGEST_INLINE_BYTES = 1_000_000_000  # protobuf ends at 2 GiB


def complete_model(source: ModelSource) -> onnx.ModelProto:
    """The model with functions inlined and the bytes of every initializer inside.

    :raises ModelError: weights are missing, or are not finite.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    for tensor in model.graph.initializer:
        raw = source.weights(tensor).tobytes()
        shape, name, kind = tuple(tensor.dims), tensor.name, tensor.data_type
        tensor.Clear()
        tensor.name, tensor.data_type, tensor.raw_data = name, kind, raw
        tensor.dims.extend(shape)
        _require_finite(tensor, source.name)
    return model


def arrays(model: onnx.ModelProto) -> dict[str, Array]:
    """The initializers of a complete model by name; not to be written to."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def with_arrays(model: onnx.ModelProto, changed: Mapping[str, Array]) -> onnx.ModelProto:
    """The model with other numbers for some of its initializers, of any shape.

    :raises UsageError: it has no initializer of such a name.
    """
    unknown = set(changed) - {tensor.name for tensor in model.graph.initializer}
    if unknown:
        raise UsageError(f"the model has no weights {sorted(unknown)[0]!r}")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(changed[tensor.name], order="C"), tensor.name))
    return result


def save_model(model: onnx.ModelProto, path: Path) -> str:
    """Write a complete model; beyond a gigabyte its weights go to `<name>.weights` next to it. All or nothing.

    :return: sha256 (hex) of what was written, the weights included.
    """
    digest, written = hashlib.sha256(), onnx.ModelProto()
    written.CopyFrom(model)
    names = [path.name]
    try:
        if sum(len(tensor.raw_data) for tensor in written.graph.initializer) > LARGEST_INLINE_BYTES:
            names.append(f"{path.name}.weights")
            with _part(path, names[1]).open("wb") as stream:
                for tensor in written.graph.initializer:
                    offset, length = stream.tell(), stream.write(tensor.raw_data)
                    digest.update(tensor.raw_data)
                    tensor.ClearField("raw_data")
                    tensor.data_location = TensorProto.EXTERNAL
                    for key, value in (("location", names[1]), ("offset", offset), ("length", length)):
                        tensor.external_data.add(key=key, value=str(value))
        text = written.SerializeToString(deterministic=True)
        digest.update(text)
        _part(path, names[0]).write_bytes(text)
        for name in reversed(names):  # the model last: it is there when all of it is
            os.replace(_part(path, name), path.with_name(name))
    except OSError as error:
        for name in names:
            with contextlib.suppress(OSError):
                _part(path, name).unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror or error}", "--out FILE") from error
    return digest.hexdigest()


def _part(path: Path, name: str) -> Path:
    return path.with_name(f".{name}.part")


def _require_finite(tensor: TensorProto, where: str) -> None:
    values = numpy_helper.to_array(tensor)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = values.size - int(np.isfinite(values).sum())
        raise ModelError(f"{where}: the weights {tensor.name!r} have {count} numbers that are NaN or infinite")
