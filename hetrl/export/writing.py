"""A plan as a bundle: what a format makes of it, a sample with its right answer, a README and a sealed manifest."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import hetrl
from hetrl.errors import UsageError
from hetrl.export.base import Exporter, Limit, Order, engines_used, grouped
from hetrl.export.bundle import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    README,
    SCHEMA,
    Manifest,
    Tensor,
    encode_manifest,
    is_archive,
    list_files,
    versions_of,
    write_zip,
)
from hetrl.graph import OperatorGraph
from hetrl.graph.single import Array
from hetrl.plan import Expected, Plan

_OTHER_ARCHIVES = frozenset({".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
_PREFIX = 40  # letters of a name: names have 255 at most
INPUT, OUTPUT = "sample-input-{}.npy", "sample-output-{}.npy"


@dataclass(frozen=True)
class Said:
    """What is known of a plan besides its files.

    :param given: what is expected of the user's plan, where another one is written or it loses something.
    :param notes: beside the format's own.
    :param machine: this computer, where it is the plan's device.
    """

    expected: Expected | None
    left_out: tuple[Limit, ...] = ()
    lowered: tuple[Limit, ...] = ()
    given: Expected | None = None
    notes: tuple[str, ...] = ()
    machine: str | None = None


def write_bundle(exporter: Exporter, order: Order, said: Said, out: Path) -> Manifest:
    """Write the bundle to `out`, a folder, or a zip file by its ending; all of it or nothing.

    :raises UsageError: something is there already.
    """
    refuse_existing(out)
    with _beside(out) as temporary:
        folder = Path(temporary) / "bundle"
        folder.mkdir()
        exporter.write(order, folder)
        inputs, outputs = _samples(order, folder)
        others = _other_engine(exporter, order.plan) if said.expected is not None else ()
        notes = (*said.notes, *others, *exporter.notes(order))
        (folder / README).write_text(_readme(exporter, order, said, notes), encoding="utf-8")
        manifest = Manifest(
            format=exporter.name,
            hetrl=hetrl.__version__,
            plan=order.plan,
            expected=said.expected,
            left_out=said.left_out,
            lowered=said.lowered,
            given=said.given,
            machine=said.machine,
            tolerance=exporter.tolerance(order.plan, quantized=exporter.quantized(folder)),
            inputs=inputs,
            outputs=outputs,
            versions=versions_of(exporter.packages),
            notes=notes,
            files=list_files(folder),
        )
        (folder / MANIFEST).write_bytes(encode_manifest(manifest))
        if is_archive(out):
            write_zip(folder, Path(temporary) / out.name)
            _put(Path(temporary) / out.name, out)
        else:
            _put(folder, out)
    return manifest


@contextmanager
def _beside(out: Path) -> Iterator[str]:
    """A folder on the same disk.

    :raises UsageError: there cannot be one.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name[:_PREFIX]}-")
    except OSError as error:
        raise UsageError(f"{out} cannot be written ({error.strerror})", "give another --out") from None
    with folder as name:
        yield name


def _put(made: Path, out: Path) -> None:
    """Give what was made its name, in one step.

    :raises UsageError: somebody else has taken the name meanwhile.
    """
    try:
        if made.is_dir():
            made.rename(out)  # over an empty folder, and over nothing else
        else:
            os.link(made, out)  # unlike renaming, never over another file
    except FileExistsError:
        raise _exists(out) from None
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):
            raise _exists(out) from None
        if made.is_dir() and out.is_dir():  # of a name that is not to be given anew: `.`, or where a disk hangs
            for path in sorted(made.iterdir(), key=lambda path: path.name == MANIFEST):
                path.rename(out / path.name)
        elif made.is_dir() or out.exists():
            raise
        else:
            made.rename(out)  # a file system without links


def _other_engine(exporter: Exporter, plan: Plan) -> tuple[str, ...]:
    others = [name for name in engines_used(plan) if name not in exporter.engines]
    if not others:
        return ()
    return (f"what is expected is for {' and '.join(others)}: times in {exporter.name} are others",)


def refuse_existing(out: Path) -> None:
    """:raises UsageError: `out` is there already, and no empty folder; it is in a bundle, or no bundle by its name."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or is_archive(out) or any(out.iterdir()))):
        raise _exists(out)
    if out.suffix.lower() in _OTHER_ARCHIVES:
        raise UsageError(f"{out}: a bundle is a folder or a zip file", "give a name without an ending, or with .zip")
    around = next((folder for folder in (out.parent / "any").resolve().parents if _is_open_bundle(folder)), None)
    if around is not None:
        raise UsageError(f"{out} is in the bundle {around}, which would not be whole then", "give another --out")


def _is_open_bundle(folder: Path) -> bool:
    manifest = folder / MANIFEST
    if not manifest.is_file() or manifest.stat().st_size > MAX_MANIFEST_BYTES:
        return False
    return f'"{SCHEMA}"'.encode() in manifest.read_bytes()


def _exists(out: Path) -> UsageError:
    return UsageError(f"{out} exists already", "give another --out")


def _samples(order: Order, folder: Path) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and what the whole model makes of them, where the format has weights."""
    graph, weighted = order.graph, order.weighted
    if weighted is None:
        return _tensors(graph, graph.inputs, {}, INPUT, folder), _tensors(graph, graph.outputs, {}, OUTPUT, folder)
    return (
        _tensors(graph, graph.inputs, weighted.inputs, INPUT, folder),
        _tensors(graph, graph.outputs, weighted.outputs, OUTPUT, folder),
    )


def _tensors(
    graph: OperatorGraph, names: Sequence[str], values: Mapping[str, Array], pattern: str, folder: Path
) -> tuple[Tensor, ...]:
    found = []
    for number, name in enumerate(names):
        tensor, file = graph.tensor_by_name[name], None
        if name in values:
            file = pattern.format(number)
            with (folder / file).open("wb") as stream:
                np.lib.format.write_array(stream, np.asarray(values[name], order="C"), (1, 0), allow_pickle=False)
        found.append(Tensor(name, tensor.shape, tensor.dtype, file))
    return tuple(found)


def _readme(exporter: Exporter, order: Order, said: Said, notes: Sequence[str]) -> str:
    plan = order.plan
    lines = [f"# {plan.model.name} for {exporter.name}", ""]
    lines += [f"A plan of hetrl {hetrl.__version__} for {plan.device}, on {', '.join(plan.processors)}.", ""]
    lines += [exporter.readme(order).rstrip(), ""]
    expected = said.expected
    if expected is not None:
        lines.append(
            f"Expected on {plan.device} in {' and '.join(engines_used(plan))} ({expected.condition}): "
            f"{expected.latency_ms:.4g} ms, {expected.evidence.value}."
        )
    lines += [f"- Left out: {limit.field}: {limit.reason}." for limit in grouped(said.left_out)]
    lines += [f"- Lowered from another plan: {limit.field}: {limit.reason}." for limit in grouped(said.lowered)]
    lines += [f"- {note}." for note in notes]
    what = "files, outputs and placement" if exporter.runs else "that the files say what the plan does"
    lines += ["", f"`hetrl validate` on this folder checks {what}.", ""]
    return "\n".join(lines)
