"""Files of JSON lines that survive a crash: one writer at a time, each line complete or cut off."""

from __future__ import annotations

import fcntl
from io import FileIO
from pathlib import Path

from hetrl.errors import RunError


def open_to_append(path: Path, hint: str) -> FileIO:
    """The file, locked until it is closed, without what a crash left of a last line; made if there is none.

    :param hint: what to type if somebody else is writing it.
    :raises RunError: somebody else is.
    """
    file = FileIO(str(path), "ab")  # a text, so that an error names it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise RunError(f"another hetrl is writing {path}", hint) from None
    drop_torn_line(path)
    return file


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a crash left without its end."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


def whole_lines(data: bytes) -> list[bytes]:
    """All lines that have their end."""
    return data[: data.rfind(b"\n") + 1].splitlines()
