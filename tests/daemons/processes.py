"""What both daemons need."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable


def free_port() -> int:
    """A port of this computer that nobody has, and that adb does not take for an emulator's (5555 to 5585)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(ready: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def alive(pid: int) -> bool:
    """Whether it still runs; one that nobody has waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_tree(pid: int) -> None:
    """Kill a process and all that descend from it, whatever sessions they made, as a power cut does.

    All stop before any dies, and parents die first: a daemon would else tell its client that its child was killed.
    """
    for member in _stopped(pid):
        _signal(member, signal.SIGKILL)


def _stopped(pid: int) -> list[int]:
    """The process, which no longer runs, and its descendants, which do not either, parents first."""
    _signal(pid, signal.SIGSTOP)
    return [pid, *(member for child in _children(pid) for member in _stopped(child))]


def _signal(pid: int, what: signal.Signals) -> None:
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        pass


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []
