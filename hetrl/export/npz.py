"""Arrays that a user gives, by name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from hetrl.errors import UsageError
from hetrl.graph.single import Array


def read_npz(file: Path) -> dict[str, Array]:
    """All arrays of an npz file; one of an npy file is called `inputs`.

    :raises UsageError: it is neither, or holds objects.
    """
    try:
        with file.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"inputs": loaded}
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UsageError(f"{file} is no npz file of arrays ({error})", "numpy.savez writes one") from None


def write_npz(file: Path, arrays: dict[str, Array]) -> None:
    """What `numpy.savez` writes, whatever the arrays are called."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(array, order="C"), allow_pickle=False)
