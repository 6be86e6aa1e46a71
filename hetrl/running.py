"""`hetrl run`: a bundle in its real runtime."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from hetrl.errors import UnknownName, UsageError
from hetrl.export.base import Moved, exporters, find_exporter
from hetrl.export.bundle import Bundle, is_bundle, open_bundle
from hetrl.export.npz import read_npz, write_npz
from hetrl.export.samples import samples
from hetrl.export.timing import interval_ms
from hetrl.graph.single import Array
from hetrl.plan import Evidence

_LOADERS = "hetrl.export.loaders"


class Output(msgspec.Struct, frozen=True):
    """One output; `largest_at` is the flat index of its largest value: a classifier's class."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    largest_at: int


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What `hetrl run` did; `inferences` were timed."""

    format: str
    inferences: int
    latency_ms: float
    latency_interval_ms: tuple[float, float] | None
    evidence: Evidence
    outputs: tuple[Output, ...]
    moved: tuple[Moved, ...]
    out: str | None


def run_bundle(path: Path, data: Path | None, out: Path | None, repeats: int) -> Ran:
    """Run a bundle on its own sample, or on the arrays of an npz file.

    :raises Refused: the bundle is not what its manifest says, or its runtime does not take it.
    :raises UsageError: arrays are missing, or have another shape; a format that runs nothing.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist", "`hetrl export` writes bundles")
    if not is_bundle(path):
        raise UsageError(f"{path} is no bundle", "`hetrl export` makes one of a plan")
    with open_bundle(path) as bundle:
        exporter = find_exporter(bundle.manifest.format)
        if not exporter.runs:
            raise UsageError(f"a bundle for {exporter.name} describes a plan, it does not run", "see its README.md")
        inputs = samples(bundle)[0] if data is None else _read(data, bundle)
        tried = exporter.load_and_run(bundle, inputs, repeats)
    if out is not None:
        write_npz(out, tried.outputs)
    return Ran(
        format=exporter.name,
        inferences=len(tried.latency_ms),
        latency_ms=median(tried.latency_ms),
        latency_interval_ms=interval_ms(tried.latency_ms),
        evidence=Evidence.MEASURED,
        outputs=tuple(_output(name, array) for name, array in tried.outputs.items()),
        moved=tried.moved,
        out=None if out is None else str(out),
    )


def _output(name: str, array: Array) -> Output:
    return Output(name, array.dtype.name, array.shape, int(np.argmax(array)) if array.size else 0)


def _read(file: Path, bundle: Bundle) -> dict[str, Array]:
    """A single input's array may be called `inputs`."""
    there = read_npz(file)
    found = {}
    for tensor in bundle.manifest.inputs:
        array = there.get(tensor.name, there.get("inputs") if len(bundle.manifest.inputs) == 1 else None)
        wanted = f"{tensor.dtype} {list(tensor.shape)}"
        if array is None:
            raise UsageError(f"{file} has no array {tensor.name!r}", f"it should be {wanted}")
        if array.shape != tensor.shape or not np.can_cast(array.dtype, np.dtype(tensor.dtype), "same_kind"):
            raise UsageError(f"{file}: {tensor.name!r} is {array.dtype} {list(array.shape)}", f"it should be {wanted}")
        found[tensor.name] = np.asarray(array, dtype=tensor.dtype, order="C")
    return found


def loader_text(format_name: str) -> str:
    """The program that an app copies to load bundles of a format.

    :raises UnknownName: there is none for it.
    """
    folder = resources.files(_LOADERS)
    known = [file.name.removesuffix("_bundle.py") for file in folder.iterdir() if file.name.endswith("_bundle.py")]
    if format_name not in known:
        if any(exporter.name == format_name for exporter in exporters()):
            raise UsageError(
                f"there is no program to copy for {format_name}", "the bundle's README.md says how an app loads it"
            )
        raise UnknownName("loader", format_name, known, "hetrl export --list")
    return (folder / f"{format_name}_bundle.py").read_text(encoding="utf-8")
