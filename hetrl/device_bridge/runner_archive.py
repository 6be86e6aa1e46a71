"""The runner as one file that any Python runs: `python3 runner-HASH.pyz FOLDER`."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from hetrl.device_bridge.blobs import NAME_DIGITS

PACKAGE = "hetrl.device_bridge.runner"
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first time that a zip file can name: the same code gives the same bytes

# Processes that the runner starts as `python -m hetrl.device_bridge.runner...` must find the same code.
_MAIN = f"""\
import os, runpy, sys
here = os.path.abspath(sys.path[0])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
runpy.run_module("{PACKAGE}", run_name="__main__", alter_sys=True)
"""


def build_runner_archive(folder: Path) -> Path:
    """Write the archive into a folder, unless it is there; its name has the hash of its bytes."""
    data = runner_archive()
    path = folder / f"runner-{hashlib.sha256(data).hexdigest()[:NAME_DIGITS]}.pyz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        half = folder / f".half-{os.getpid()}-{path.name}"
        half.write_bytes(data)
        half.replace(path)
    return path


def runner_archive() -> bytes:
    """The archive's bytes, a function of the runner's source alone."""
    files = {"__main__.py": _MAIN.encode()}
    parents = PACKAGE.split(".")[:-1]
    for depth in range(1, len(parents) + 1):
        files["/".join([*parents[:depth], "__init__.py"])] = b""
    _collect(resources.files(PACKAGE), PACKAGE.replace(".", "/"), files)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:  # how zlib packs differs between its versions
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, LONG_AGO), files[name])
    return stream.getvalue()


def _collect(folder: Traversable, where: str, files: dict[str, bytes]) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name != "__pycache__":
            _collect(entry, f"{where}/{entry.name}", files)
        elif entry.name.endswith(".py"):
            files[f"{where}/{entry.name}"] = entry.read_bytes()
