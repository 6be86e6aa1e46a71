"""Inputs to calibrate with: samples from a file, or seeded ones."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from hetrl.errors import UsageError
from hetrl.fidelity import seeded_inputs
from hetrl.graph import OperatorGraph
from hetrl.graph.inputs import format_shape
from hetrl.graph.single import Array

SEEDED_SAMPLES = 8
FROM_FILE, SEEDED = "file", "seeded random inputs"
_ANSWERS = frozenset({"labels", "targets"})  # of data sets that are for scoring as well
_ONLY_INPUT = "inputs"


class Samples(msgspec.Struct, frozen=True):
    """Values of all inputs by name, one mapping per run of the model.

    :param source: `file`, or `seeded random inputs`.
    """

    source: str
    values: tuple[Mapping[str, Array], ...]


def seeded_samples(graph: OperatorGraph, seed: int, count: int = SEEDED_SAMPLES) -> Samples:
    """Random inputs, the same for the same seed. They say nothing about real data."""
    return Samples(SEEDED, tuple(seeded_inputs(graph, seed + index) for index in range(count)))


def read_samples(path: Path, graph: OperatorGraph) -> Samples:
    """An `.npz` file with an array for each input of the model, or one called `inputs` for the only one.

    The first axis counts samples: of the shape 1x3x8x8, an input takes arrays of Nx3x8x8, or of Nx1x3x8x8. Arrays
    called `labels` or `targets` are left alone.

    :raises UsageError: no such file, or arrays whose names, shapes, types or numbers do not fit.
    """
    arrays = _read(path)
    if len(graph.inputs) == 1 and graph.inputs[0] not in arrays and _ONLY_INPUT in arrays:
        arrays[graph.inputs[0]] = arrays.pop(_ONLY_INPUT)
    wanted = ", ".join(f"{name}:{format_shape(graph.tensor_by_name[name].shape)}" for name in graph.inputs)
    for name in graph.inputs:
        if name not in arrays:
            raise UsageError(f"{path} has no array for the input {name!r}", f"the model's inputs: {wanted}")
    extra = sorted(set(arrays) - set(graph.inputs) - _ANSWERS)
    if extra:
        raise UsageError(f"{path}: the model has no input {extra[0]!r}", f"its inputs: {wanted}")
    batches = {name: _batches(path, name, arrays[name], graph) for name in graph.inputs}
    counts = {len(array) for array in batches.values()}
    if len(counts) > 1:
        raise UsageError(f"{path} has different numbers of samples for different inputs", "give as many for each")
    return Samples(FROM_FILE, tuple({n: array[i] for n, array in batches.items()} for i in range(counts.pop())))


def _read(path: Path) -> dict[str, Array]:
    hint = "numpy.savez(FILE, inputs=ARRAY) writes one"
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream):
            stream.seek(0)
            file = np.load(stream, allow_pickle=False)
            return {name: np.asarray(file[name]) for name in file.files}
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", hint) from None
    except (OSError, ValueError, EOFError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is no .npz file of plain arrays", hint) from error


def _batches(path: Path, name: str, array: Array, graph: OperatorGraph) -> Array:
    """The array with one more axis in front, which counts runs."""
    tensor = graph.tensor_by_name[name]
    shape, dtype = tensor.shape, np.dtype(tensor.dtype)
    if array.dtype.kind != dtype.kind:
        raise UsageError(
            f"{path}: {name!r} is of {array.dtype}, the model's input of {dtype}", f"convert it with .astype({dtype})"
        )
    stacked = array.shape[1:] == shape
    if not stacked and (array.shape[1:] != shape[1:] or not shape or array.ndim != len(shape)):
        raise UsageError(
            f"{path}: {name!r} has the shape {format_shape(array.shape)}, the model's input {format_shape(shape)}",
            "the first axis counts samples",
        )
    if len(array) == 0 or (not stacked and len(array) % shape[0]):
        raise UsageError(f"{path}: {name!r} has {len(array)} samples", f"give a multiple of {shape[0] if shape else 1}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(f"{path}: {name!r} has numbers that are NaN or infinite")
    return array.reshape(-1, *shape).astype(dtype, copy=False)
