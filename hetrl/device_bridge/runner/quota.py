"""A limit on CPU time through a control group of Linux, version 1 or 2, where this user may make one.

See Documentation/scheduler/sched-bwc.rst and Documentation/admin-guide/cgroup-v2.rst in Linux.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PERIOD_US = 100_000  # the kernel's default
MIN_QUOTA_US = 1_000  # the kernel takes no less
PREFIX = "hetrl-runner-"


class Unavailable(Exception):
    """The cap cannot be applied here; the message says why."""


@dataclass(frozen=True)
class Group:
    """The control group under which new ones can be made, and the one that this process is in."""

    version: int
    parent: Path
    home: Path


def quota_group(proc: Path = Path("/proc")) -> Group:
    """Where a CPU quota can be set.

    :raises Unavailable: nowhere; says why.
    """
    try:
        memberships = (proc / "self/cgroup").read_text().splitlines()
        mounts = (proc / "self/mountinfo").read_text().splitlines()
    except OSError:
        raise Unavailable("a CPU quota needs Linux's control groups") from None
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            group = _folder(mounts, "cgroup", "cpu", path)
            if group is not None and _writable(group):
                return Group(1, group, group)
            raise Unavailable("this user may not make a control group with a CPU quota")
    for line in memberships:
        if line.startswith("0::"):
            group = _folder(mounts, "cgroup2", None, line[3:])
            if group is not None:
                return _delegated(group)
    raise Unavailable("no control group of this process limits CPU time")


def _folder(mounts: list[str], kind: str, option: str | None, path: str) -> Path | None:
    """The folder of a control group; see proc(5) for the form of mountinfo's lines."""
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        fields, (found, _, options) = before.split(), after.split()[:3]
        if found == kind and (option is None or option in options.split(",")):
            root, point = fields[3], Path(fields[4])
            inside = path[len(root) :] if root != "/" and path.startswith(root) else path
            folder = point / inside.lstrip("/")
            return folder if folder.is_dir() else point
    return None


def _delegated(home: Path) -> Group:
    """In version 2, the nearest group above that hands the CPU controller to its children."""
    for parent in (home, *home.parents):
        control = parent / "cgroup.subtree_control"
        if not control.exists():
            break
        with suppress(OSError):
            if "cpu" in control.read_text().split() and _writable(parent):
                return Group(2, parent, home)
    raise Unavailable("no control group with a CPU quota is delegated to this user")


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)


@contextmanager
def limit_cpu(cpus: float) -> Iterator[None]:
    """Keep this process to so many cores' worth of CPU time.

    :raises Unavailable: it cannot be done here.
    """
    group = quota_group()
    _sweep(group)
    folder = group.parent / f"{PREFIX}{os.getpid()}"
    quota_us = max(MIN_QUOTA_US, round(cpus * PERIOD_US))
    try:
        folder.mkdir(exist_ok=True)
        if group.version == 1:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            (folder / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
        (folder / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        raise Unavailable(f"the kernel refused a CPU quota: {error.strerror}") from error
    try:
        yield
    finally:
        (group.home / "cgroup.procs").write_text(str(os.getpid()))
        with suppress(OSError):
            folder.rmdir()


def _sweep(group: Group) -> None:
    """Remove what killed runners left; the kernel refuses where a process is in it."""
    for folder in list(group.parent.glob(f"{PREFIX}*")):
        with suppress(OSError):
            folder.rmdir()
