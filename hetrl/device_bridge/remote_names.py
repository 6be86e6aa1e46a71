"""Which names may stand for a file on a device."""

from __future__ import annotations

import re

from hetrl.errors import UsageError

# No separator, no space, nothing that a shell reads, and no leading dot or dash.
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}")


def checked_name(name: str) -> str:
    """The name, if it can only be a file directly in a device's work folder.

    :raises UsageError: it could be anything else.
    """
    if not _FILE.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a file on a device", "use letters, digits, dots and dashes")
    return name


def last_line(text: str) -> str:
    """The last line that says something, for a message of one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
