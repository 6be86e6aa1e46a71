"""Files that go to devices, named by what they hold, so that none is made or sent twice."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NAME_DIGITS = 32  # hex digits of the sha256 that name a file


class BlobStore:
    """A folder of such files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self.folder / name

    def put(self, data: bytes, suffix: str) -> str:
        """Keep the bytes; the name of their file."""
        name = hashlib.sha256(data).hexdigest()[:NAME_DIGITS] + suffix
        if not self.path(name).exists():
            self.write(name, data)
        return name

    def put_stream(self, chunks: Iterable[NDArray[np.uint8]], suffix: str) -> str:
        """The same for bytes that come one after the other, so that they are never all in memory."""
        digest = hashlib.sha256()
        handle, temporary = tempfile.mkstemp(dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                for chunk in chunks:
                    digest.update(chunk.data)
                    file.write(chunk.data)
            name = digest.hexdigest()[:NAME_DIGITS] + suffix
            os.replace(temporary, self.path(name))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return name

    def write(self, name: str, data: bytes) -> None:
        """All of it or nothing, also if two processes write the same."""
        handle, temporary = tempfile.mkstemp(dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, self.path(name))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
