"""Evaluation data from an npz file: arrays of inputs, and one of labels or targets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np

from hetrl.errors import UsageError
from hetrl.scoring.data import Feeds, Rows
from hetrl.scoring.interface import Array, InputSpec, Interface

INPUTS = "inputs"
RIGHT = ("labels", "targets")
HOW = "np.savez(FILE, inputs=..., labels=...)"


@dataclass(frozen=True)
class ArraySamples:
    """Samples that are in memory, already in the model's types."""

    inputs: Feeds
    labels: Array
    key: str
    classes: int | None = None

    def batch(self, rows: Rows) -> dict[str, Array]:
        return {name: values[rows] for name, values in self.inputs.items()}


def read_arrays(path: Path, wanted: Interface) -> ArraySamples:
    """Read an npz file for a model; nothing in it is ever unpickled.

    It holds an array for each input, by its name (`inputs` will do for a single one), and `labels` or `targets`. The
    first size of each is the number of samples.

    :raises UsageError: the file is no such file, or does not fit the model.
    """
    found = _load(path)
    inputs = {spec.name: _fitting(_input(found, spec, wanted, path), spec, path) for spec in wanted.inputs}
    names = [name for name in RIGHT if name in found]
    if len(names) != 1:
        what = "both labels and targets" if names else f"no labels, only {_listed(found)}"
        raise UsageError(f"{path} holds {what}", "name class numbers `labels`, or what outputs should be `targets`")
    labels = _labels(found[names[0]], names[0], path)
    for name, values in inputs.items():
        if len(values) != len(labels):
            raise UsageError(f"{path} has {len(values)} samples of {name!r} and {len(labels)} {names[0]}", HOW)
    if not len(labels):
        raise UsageError(f"{path} holds no samples", HOW)
    return ArraySamples(inputs, labels, _digest(inputs, labels))


def _load(path: Path) -> dict[str, Array]:
    found = None
    try:
        with path.open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            if isinstance(found, np.lib.npyio.NpzFile):
                return {name: found[name] for name in found.files}
            problem = "it is a single array"
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", "--eval-data takes an npz file or a folder of pictures") from None
    except OSError as error:
        problem = error.strerror or "not in numpy's format"
    except (BadZipFile, ZlibError, ValueError, EOFError, TypeError, MemoryError, NotImplementedError) as error:
        objects = found is not None and "pickle" in str(error)  # whose bytes could do anything
        problem = "it holds Python objects" if objects else "not in numpy's format, or damaged"
    raise UsageError(f"{path} cannot be read as npz: {problem}", HOW)


def _input(found: dict[str, Array], spec: InputSpec, wanted: Interface, path: Path) -> Array:
    names = [spec.name, INPUTS] if len(wanted.inputs) == 1 else [spec.name]
    values = next((found[name] for name in names if name in found), None)
    if values is None:
        want = " or ".join(repr(name) for name in names)
        raise UsageError(f"{path} has no array {want}, only {_listed(found)}", f"the model wants {spec.words}")
    return values


def _listed(found: dict[str, Array]) -> str:
    return ", ".join(repr(name) for name in found) or "nothing"


def _fitting(values: Array, spec: InputSpec, path: Path) -> Array:
    """The values in the model's type, if they are as it wants them."""
    wants = f"the model's input {spec.name!r} wants {spec.dtype.name} of {spec.words}"
    fits = values.ndim == len(spec.shape) and all(
        size in (None, given) for size, given in zip(spec.shape[1:], values.shape[1:], strict=True)
    )
    if not fits:
        raise UsageError(
            f"{path} has inputs of {'x'.join(map(str, values.shape)) or 'no size'}", wants + _turned(values, spec)
        )
    floats = spec.dtype.kind not in "iub"
    if values.dtype.kind not in ("f" if floats else "iub"):
        scaled = ", scaled as in training" if floats and values.dtype.kind in "iu" else ""
        raise UsageError(f"{path} has inputs of type {values.dtype}", wants + scaled)
    with np.errstate(over="ignore"):
        result = values.astype(spec.dtype, copy=False)
    bad = np.flatnonzero(~np.isfinite(result).all(tuple(range(1, values.ndim))))
    if len(bad):
        raise UsageError(f"{path} has NaN or infinite inputs in {len(bad)} samples", f"look at inputs[{bad[0]}]")
    if not floats and not np.array_equal(result, values):
        raise UsageError(f"{path} has inputs that do not fit into {spec.dtype.name}", wants)
    return np.ascontiguousarray(result)


def _turned(values: Array, spec: InputSpec) -> str:
    """What may have gone wrong with the order of the axes."""
    if values.ndim == len(spec.shape) - 1 and spec.shape[1] == 1:
        return ": inputs[:, None] adds the axis of channels"
    if values.ndim == 4 and len(spec.shape) == 4 and values.shape[3] == spec.shape[1] != values.shape[1]:
        return ": inputs.transpose(0, 3, 1, 2) puts channels first"
    return ""


def _labels(values: Array, name: str, path: Path) -> Array:
    if values.ndim == 0 or values.dtype.kind not in "iuf":
        what = "a single number" if values.ndim == 0 else f"of type {values.dtype}"
        raise UsageError(f"{path} has {name} {what}", "class numbers (integers), or what outputs should be (floats)")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise UsageError(f"{path} has NaN or infinite {name}")
        return values
    if values.dtype.kind == "u" and values.max(initial=0) > np.iinfo(np.int64).max:
        raise UsageError(f"{path} has {name} beyond all class numbers", "classes are numbered from 0")
    labels = values.astype(np.int64)
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _digest(inputs: Feeds, labels: Array) -> str:
    digest = hashlib.sha256()
    for name, values in [*sorted(inputs.items()), ("", labels)]:
        digest.update(f"{name}|{values.dtype.str}|{values.shape}|".encode())
        digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
