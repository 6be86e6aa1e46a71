"""Where hetrl keeps files of its own: what can be made again, and what cannot."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "HETRL_CACHE"


def cache_folder() -> Path:
    """`$HETRL_CACHE`, or `hetrl` in the user's cache folder (XDG Base Directory Specification); may not exist."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    return _base("XDG_CACHE_HOME", ".cache")


def data_folder() -> Path:
    """`hetrl` in the user's data folder, for what was measured; may not exist."""
    return _base("XDG_DATA_HOME", ".local/share")


def _base(variable: str, usual: str) -> Path:
    base = os.environ.get(variable)
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / usual) / "hetrl"
