"""Processes that a runner keeps beside itself: they never outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ROOT = Path(__file__).absolute().parents[3]  # what is on the module path: a folder, or the archive that holds this file

# PR_SET_PDEATHSIG is bound to the thread that starts the process: the runner starts them in its main thread.
_START = "import sys; sys.path.insert(0, sys.argv[1]); from hetrl.device_bridge.runner.{module} import main; main()"


def start_helper(module: str, arguments: Sequence[str], cores: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start `main()` of a module of this folder in a process of its own, on these cores, at normal priority.

    :param arguments: what it finds in `sys.argv[4:]`.
    """
    command = [sys.executable, "-I", "-S", "-c", _START.format(module=module), str(ROOT), str(os.getpid())]
    command += [",".join(map(str, cores)), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def begin_helper() -> list[str]:
    """First thing in a helper: be sure to end with the runner, and take the cores that were given.

    :return: the helper's own arguments.
    """
    parent, cores = int(sys.argv[2]), sys.argv[3]
    if hasattr(os, "sched_setaffinity"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if cores:
            os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    if os.getppid() != parent:  # it died before the request above
        os._exit(1)
    return sys.argv[4:]


def end_helper(process: subprocess.Popen[bytes]) -> None:
    """Kill it, and leave neither zombie nor pipe."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
