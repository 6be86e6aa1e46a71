"""A bundle: a folder, or a zip file of one, that holds a plan for one runtime, and a manifest that says what is in it.

A bundle is data. All of it is checked against the manifest before anything else looks at it, nothing in it is ever
executed or unpickled, and nothing that the manifest does not list may be there.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import msgspec

from hetrl.compression import SHA256
from hetrl.errors import HetrlError, PlanError
from hetrl.export.base import Limit
from hetrl.plan import Expected, Plan

SCHEMA: Literal["hetrl.bundle/1"] = "hetrl.bundle/1"
MANIFEST = "manifest.json"
README = "README.md"
MAX_MANIFEST_BYTES = 64 << 20
MAX_BYTES = 16 << 30  # of all files: as much as most phones' memory
MAX_FILES = 20_000
MAX_RATIO = 200  # inflated bytes for one in the archive; float weights do not reach 20
_NAME = re.compile(r"[A-Za-z0-9_.@+-]{1,128}")
_CHUNK = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's first date: the same bundle, the same bytes


class Refused(HetrlError):
    """A bundle that is not to be trusted, or that its runtime does not take."""

    exit_code = 1


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a bundle; `path` is relative, with slashes."""

    path: str
    bytes: int
    sha256: str


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output of the model; `dtype` is numpy's name, `file` holds its value in the bundle's own sample."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a bundle is.

    :param plan: that it carries, after lowering; `expected` what was expected of it on the plan's device.
    :param left_out: of the plan; `lowered`: of the plan that the user gave, for whose sake this one was found.
    :param given: what was expected of the plan that the user gave, where that is another or lost something.
    :param machine: which computer the plan's device was, where that is the one that the plan was exported on.
    :param tolerance: how far outputs may be off: largest difference over largest value.
    :param versions: of what the files were made with.
    :param sha256: of this manifest with this field empty.
    """

    schema: Literal["hetrl.bundle/1"] = SCHEMA
    format: str
    hetrl: str
    plan: Plan
    expected: Expected | None
    left_out: tuple[Limit, ...]
    lowered: tuple[Limit, ...]
    given: Expected | None
    machine: str | None
    tolerance: float
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    versions: dict[str, str]
    notes: tuple[str, ...]
    files: tuple[File, ...]
    sha256: str = ""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are what the manifest says."""

    folder: Path
    manifest: Manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical bytes, sealed with their own hash."""
    return _encoded(msgspec.structs.replace(manifest, sha256=_seal(manifest)))


def _encoded(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"


def _seal(manifest: Manifest) -> str:
    return hashlib.sha256(_encoded(msgspec.structs.replace(manifest, sha256=""))).hexdigest()


def list_files(folder: Path) -> tuple[File, ...]:
    """All files of a folder but the manifest, by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return tuple(File(path.relative_to(folder).as_posix(), path.stat().st_size, _sha256(path)) for path in paths)


def write_zip(folder: Path, archive: Path) -> None:
    """The folder as a zip file, uncompressed: the same folder, the same bytes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), _EPOCH)
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            with path.open("rb") as source, file.open(info, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, _CHUNK)


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """A folder or a zip file as a bundle, every byte checked; what a zip file holds is unpacked meanwhile.

    :raises Refused: it is not what its manifest says, or could do harm.
    """
    if path.is_symlink():
        raise _refused(path, "is a symbolic link")
    if path.is_dir():
        yield _checked(path, path)
    elif path.is_file():
        with tempfile.TemporaryDirectory(prefix="hetrl-bundle-") as folder:
            _unpack(path, Path(folder))
            yield _checked(Path(folder), path)
    else:
        raise _refused(path, "does not exist", "`hetrl export` writes one")


def is_bundle(path: Path) -> bool:
    """Whether a path is meant as a bundle: a folder, or a zip file; plans are JSON files."""
    return path.is_dir() or is_archive(path) or (path.is_file() and zipfile.is_zipfile(path))


def is_archive(path: Path) -> bool:
    """By its ending."""
    return path.suffix.lower() == ".zip"


def _checked(folder: Path, named: Path) -> Bundle:
    there = _regular_files(folder, named)
    if MANIFEST not in there:
        raise _refused(named, f"has no {MANIFEST}", "`hetrl export` writes bundles")
    if there[MANIFEST] > MAX_MANIFEST_BYTES:
        raise _refused(named, f"{MANIFEST} has {there[MANIFEST]} bytes")
    manifest = _manifest((folder / MANIFEST).read_bytes(), named)
    listed = {file.path for file in manifest.files}
    for name in sorted(listed - set(there)):
        raise _refused(named, f"lacks {name!r}, which its manifest lists")
    for name in sorted(set(there) - listed - {MANIFEST}):
        raise _refused(named, f"holds {name!r}, which its manifest does not list")
    for file in manifest.files:
        if there[file.path] != file.bytes:
            raise _refused(named, f"{file.path!r} has {there[file.path]} bytes, the manifest says {file.bytes}")
    for file in manifest.files:
        if _sha256(folder / file.path) != file.sha256:
            raise _refused(named, f"{file.path!r} has been changed: its sha256 is not the manifest's")
    return Bundle(folder, manifest)


def _regular_files(folder: Path, named: Path) -> dict[str, int]:
    """Sizes of all files by path."""
    found: dict[str, int] = {}
    open_folders = [folder]
    while open_folders:
        for path in sorted(open_folders.pop().iterdir()):
            name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise _refused(named, f"{name!r} is a symbolic link")
            if stat.S_ISDIR(mode):
                if not any(path.iterdir()):
                    raise _refused(named, f"holds the empty folder {name!r}, which its manifest does not list")
                open_folders.append(path)
            elif stat.S_ISREG(mode):
                found[name] = path.lstat().st_size
            else:
                raise _refused(named, f"{name!r} is no plain file")
            if len(found) + len(open_folders) > MAX_FILES:
                raise _refused(named, f"holds more than {MAX_FILES} files")
    return found


def _manifest(data: bytes, named: Path) -> Manifest:
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except PlanError as error:
        raise _refused(named, f"{MANIFEST}: {error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = error.__cause__ if isinstance(error.__cause__, PlanError) else error
        raise _refused(named, f"{MANIFEST}: {str(reason)[:1].lower()}{str(reason)[1:]}") from None
    if _encoded(manifest) != data or manifest.sha256 != _seal(manifest):
        raise _refused(named, f"{MANIFEST} has been changed: its sha256 is not that of its content")
    if len({file.path for file in manifest.files}) != len(manifest.files):
        raise _refused(named, f"{MANIFEST} lists a file twice")
    for file in manifest.files:
        _check_path(file.path, named)
        if file.bytes < 0 or not SHA256.fullmatch(file.sha256):
            raise _refused(named, f"{MANIFEST}: {file.path!r} has no proper size or sha256")
    if sum(file.bytes for file in manifest.files) > MAX_BYTES or len(manifest.files) > MAX_FILES:
        raise _refused(named, f"is larger than {MAX_BYTES >> 30} GiB or {MAX_FILES} files")
    listed = {file.path for file in manifest.files}
    for tensor in (*manifest.inputs, *manifest.outputs):
        if tensor.file is not None and tensor.file not in listed:
            raise _refused(named, f"{MANIFEST}: {tensor.file!r} is not among its files")
    return manifest


def _check_path(path: str, named: Path) -> None:
    """Relative, below the bundle, of harmless characters on every system."""
    parts = path.split("/")
    if not all(_NAME.fullmatch(part) and part.strip(".") for part in parts) or path == MANIFEST:
        raise _refused(named, f"{path!r} is no path below a bundle")


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack what the archive's own manifest lists, and not a byte more."""
    try:
        with zipfile.ZipFile(archive) as file:
            _check_entries(file, archive)
            for entry in file.infolist():
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(entry) as source, target.open("wb") as out:
                    _copy(source, out, entry.file_size, archive)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise _refused(archive, f"is no sound zip file ({error})") from None


def _check_entries(file: zipfile.ZipFile, archive: Path) -> None:
    """Before anything is unpacked: names, kinds and sizes are the manifest's, and small for the archive."""
    entries = file.infolist()
    if len(entries) > MAX_FILES or len({entry.filename for entry in entries}) != len(entries):
        raise _refused(archive, "has too many entries, or one twice")
    names = {entry.filename for entry in entries}
    above = next((name.removesuffix(f"/{MANIFEST}") for name in names if name.endswith(f"/{MANIFEST}")), "")
    if MANIFEST not in names and above:
        raise _refused(archive, f"has its files in a folder {above!r}", "pack what is in the folder, not the folder")
    for entry in entries:
        if entry.filename != MANIFEST:
            _check_path(entry.filename, archive)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _refused(archive, f"{entry.filename!r} is a symbolic link or no plain file")
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(archive, f"{entry.filename!r} is encrypted, or packed in an unusual way")
        if entry.file_size > MAX_RATIO * (entry.compress_size + 1024):
            raise _refused(archive, f"{entry.filename!r} inflates to {entry.file_size} bytes")
    sizes = {entry.filename: entry.file_size for entry in entries}
    total = sum(sizes.values())
    if total > min(MAX_BYTES, MAX_RATIO * (archive.stat().st_size + 1024)):
        raise _refused(archive, f"inflates to {total} bytes, which is more than it may")
    if sizes.pop(MANIFEST, MAX_MANIFEST_BYTES + 1) > MAX_MANIFEST_BYTES:
        raise _refused(archive, f"has no {MANIFEST}, or a huge one", "`hetrl export` writes bundles")
    manifest = _manifest(file.read(MANIFEST), archive)
    if sizes != {listed.path: listed.bytes for listed in manifest.files}:
        raise _refused(archive, "holds other files than its manifest lists, or of other sizes")


def _copy(source: IO[bytes], out: IO[bytes], limit: int, archive: Path) -> None:
    copied = 0
    while chunk := source.read(_CHUNK):
        copied += len(chunk)
        if copied > limit:
            raise _refused(archive, "inflates to more than it says")
        out.write(chunk)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refused(path: Path, reason: str, hint: str = "export the plan again") -> Refused:
    return Refused(f"{path} {reason}" if not reason.startswith("'") else f"{path}: {reason}", hint)


def versions_of(packages: Mapping[str, str]) -> dict[str, str]:
    """Installed versions of packages, by what they are called here."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name, package in packages.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    return found
