"""Tensors on their way to a runner, and how far outputs are from what they should be."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def pack_arrays(arrays: Sequence[Array]) -> bytes:
    """An .npz file of arrays in the order of the job's inputs, or outputs; names of tensors may be anything."""
    buffer = io.BytesIO()
    np.savez(buffer, *arrays)
    return buffer.getvalue()


def unpack_arrays(file: Path, names: Sequence[str]) -> dict[str, Array]:
    """The same back, by name.

    :raises ValueError: it holds another number of arrays, or something else.
    """
    with np.load(file, allow_pickle=False) as arrays:
        if len(arrays.files) != len(names):
            raise ValueError(f"{file.name} has {len(arrays.files)} arrays for {len(names)} tensors")
        return {name: arrays[f"arr_{i}"] for i, name in enumerate(names)}


def output_error(outputs: Mapping[str, Array], reference: Mapping[str, Array]) -> float:
    """The largest difference over the largest absolute value of the reference, the worst of the outputs.

    :return: infinite for an output that is missing, has another shape, or is not a number where the reference is one.
    """
    return max((_error(outputs.get(name), array) for name, array in reference.items()), default=0.0)


def _error(output: Array | None, reference: Array) -> float:
    if output is None or output.shape != reference.shape:
        return float("inf")
    if reference.size == 0:
        return 0.0
    wide = np.float64
    with np.errstate(all="ignore"):
        difference = float(np.max(np.abs(output.astype(wide) - reference.astype(wide))))
        largest = float(np.max(np.abs(reference.astype(wide))))
    if difference == 0:
        return 0.0
    error = difference / largest if largest > 0 else float("inf")
    return float("inf") if np.isnan(error) else error
