"""Small models and data to be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from hetrl.scoring.arrays import ArraySamples
from hetrl.scoring.data import EvalData, whole

PARTS = '<ir_version: 8, opset_import: ["" : 17]> '


def model(text: str) -> onnx.ModelProto:
    """ONNX from its text form, without the first line."""
    return onnx.parser.parse_model(PARTS + text)


def identity(classes: int, batch: int | str = 1) -> onnx.ModelProto:
    """A model whose scores `y` are its input `x`."""
    shape = f"{batch},{classes}"
    return model(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Identity(x) }}")


def data(inputs: np.ndarray, labels: np.ndarray, name: str = "x") -> EvalData:
    return whole(ArraySamples({name: inputs}, labels, f"{hash((inputs.tobytes(), labels.tobytes()))}"))


def save(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path
