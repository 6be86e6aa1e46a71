"""Python, and the packages that hetrl always needs."""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata

from hetrl import __version__
from hetrl.doctor.finding import Finding, missing, ok

OLDEST_PYTHON = (3, 11)
REINSTALL = "pip install --force-reinstall hetrl"


def python() -> Finding:
    """The interpreter."""
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        return missing("python", f"{detail}; hetrl needs {wanted}", f"install Python {wanted} or newer", needed=True)
    return ok("python", detail, needed=True)


def packages() -> Finding:
    """All packages without which nothing runs, with their versions."""
    found, absent = [f"hetrl {__version__}"], []
    for name in required():
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            absent.append(name)
    if absent:
        return missing("packages", f"{', '.join(absent)} not installed", f"pip install {' '.join(absent)}", needed=True)
    return ok("packages", ", ".join(found), needed=True)


def required() -> tuple[str, ...]:
    """Names of the packages that the installed hetrl says it needs, extras aside."""
    try:
        lines = metadata.requires("hetrl") or []
    except metadata.PackageNotFoundError:  # run from a folder that was never installed
        return ()
    names = [re.match(r"[A-Za-z0-9._-]+", line) for line in lines if "extra ==" not in line]
    return tuple(match[0] for match in names if match)
