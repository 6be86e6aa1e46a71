"""Scores that are already known, one small JSON file each, named by the hash of everything that they depend on."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import msgspec

from hetrl.cache import cache_folder
from hetrl.scoring.metrics import Summary

FOLDER = "scores"


class _Entry(msgspec.Struct, frozen=True):
    """:param key: its own name, so that a file in the wrong place is none."""

    key: str
    summary: Summary


def known(key: str) -> Summary | None:
    """What was kept under this hash; None where nothing was, or nothing that can be read."""
    try:
        entry = msgspec.json.decode(_file(key).read_bytes(), type=_Entry)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return entry.summary if entry.key == key else None


def keep(key: str, summary: Summary) -> None:
    """Keep it: all of it or nothing, also if two processes do; a folder that cannot be written costs nothing."""
    path = _file(key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.encode(_Entry(key, summary)))
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _file(key: str) -> Path:
    return cache_folder() / FOLDER / f"{key}.json"
