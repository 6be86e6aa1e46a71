"""ONNX files as protobuf messages: every way a file can be wrong ends in one sentence."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
from onnx import numpy_helper

from hetrl.errors import ModelError

_CHUNK = 1 << 20


def read_model(path: Path) -> onnx.ModelProto:
    """Parse a file; external weights are not loaded.

    :raises ModelError: no such file, a folder, unreadable, empty, or not ONNX.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not an ONNX file")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist", "`hetrl models` lists the built-in ones") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    if not data:
        raise ModelError(f"{path} is empty")
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except Exception:  # protobuf's DecodeError, which has no types; and what else its backends raise
        raise ModelError(f"{path} is no ONNX file, or is truncated") from None
    if not model.ir_version or not model.HasField("graph"):
        raise ModelError(f"{path} is no ONNX file, or is truncated: it holds no graph")
    return model


def external_location(tensor: onnx.TensorProto, folder: Path | None) -> tuple[Path, int, int | None] | None:
    """Where an external tensor's bytes are: file, offset, length (None: to its end); None where there is no file.

    A location that leaves the model's folder counts as no file: a model must not make hetrl read elsewhere.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None or not location:
        return None
    root = folder.resolve()
    file = (root / location).resolve()
    offset, length = entries.get("offset", "0"), entries.get("length", "")
    if not file.is_relative_to(root) or not file.is_file() or not offset.isdigit():
        return None
    return file, int(offset), int(length) if length.isdigit() else None


def weights_digest(model: onnx.ModelProto, folder: Path) -> str | None:
    """sha256 (hex) of all initializers, the same for inline and external ones; None where bytes are missing."""
    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda t: t.name):
        digest.update(f"{tensor.name}|{tensor.data_type}|{list(tensor.dims)}|".encode())
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            digest.update(tensor.raw_data or numpy_helper.to_array(tensor).tobytes())
            continue
        place = external_location(tensor, folder)
        if place is None or not _digest_file(digest, *place):
            return None
    return digest.hexdigest()


def _digest_file(digest: hashlib._Hash, file: Path, offset: int, length: int | None) -> bool:
    left = length if length is not None else max(file.stat().st_size - offset, 0)
    with file.open("rb") as stream:
        stream.seek(offset)
        while left:
            chunk = stream.read(min(_CHUNK, left))
            if not chunk:
                return False
            digest.update(chunk)
            left -= len(chunk)
    return True
