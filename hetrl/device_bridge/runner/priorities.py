"""Caps that the kernel's scheduler keeps: nice, SCHED_IDLE, a CPU quota. (Duty cycles and core sets are the job's.)

Nice and SCHED_IDLE are properties of threads in Linux, so all threads of the runner get them; so do the threads that
those start later. Helpers of the runner have to be started before. Where Linux groups processes by session (autogroup,
see sched(7)), a lower priority yields to processes of the same session alone: to the runner's helpers, not to others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hetrl.device_bridge.runner.quota import Unavailable, limit_cpu, quota_group

LOWEST_NICE = 19


@dataclass(frozen=True)
class Cap:
    """How much less than everything inference may take.

    :param nice: 0 to 19.
    :param idle: run only where nobody else wants to (SCHED_IDLE).
    :param quota_cpus: cores' worth of CPU time, 0.5 for half a core; None for no limit.
    """

    nice: int = 0
    idle: bool = False
    quota_cpus: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.nice <= LOWEST_NICE:
            raise ValueError(f"nice {self.nice} is not in 0 to {LOWEST_NICE}")
        if self.quota_cpus is not None and not self.quota_cpus > 0:
            raise ValueError(f"a quota of {self.quota_cpus} cores")


NO_CAP = Cap()


@dataclass(frozen=True)
class CapSupport:
    """Whether a kind of cap can be applied here; `reason` says why not, and is empty where it can."""

    kind: str
    reason: str

    @property
    def possible(self) -> bool:
        return not self.reason


def supported_caps() -> tuple[CapSupport, ...]:
    """Every kind of cap, the job's included."""
    linux = hasattr(os, "sched_setscheduler")
    pinning = "" if hasattr(os, "sched_setaffinity") else "the system cannot pin threads"
    try:
        quota_group()
        quota = ""
    except Unavailable as error:
        quota = str(error)
    return (
        CapSupport("duty", ""),
        CapSupport("cores", pinning),
        CapSupport("nice", "" if linux else "needs Linux"),
        CapSupport("idle", "" if linux else "needs Linux"),
        CapSupport("quota", quota),
    )


def present_priority() -> tuple[int, int]:
    """This thread's nice value and scheduling policy."""
    policy = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else 0
    return os.getpriority(os.PRIO_PROCESS, 0), policy


@contextmanager
def capped(cap: Cap) -> Iterator[None]:
    """Keep this process under the cap.

    A user without privileges may lower a priority and not raise it again: `present_priority` then tells that it stays.

    :raises Unavailable: it cannot be applied here.
    """
    with ExitStack() as stack:
        if cap.quota_cpus is not None:
            stack.enter_context(limit_cpu(cap.quota_cpus))
        if cap.nice or cap.idle:
            stack.enter_context(_lowered(cap))
        yield


@contextmanager
def _lowered(cap: Cap) -> Iterator[None]:
    if not hasattr(os, "sched_setscheduler"):
        raise Unavailable("priorities of threads need Linux")
    nice, policy = present_priority()
    try:
        _set_threads(nice + cap.nice, os.SCHED_IDLE if cap.idle else policy)
        yield
    finally:
        with suppress(PermissionError):
            _set_threads(nice, policy)


def _set_threads(nice: int, policy: int) -> None:
    for task in Path("/proc/self/task").iterdir():
        try:
            os.sched_setscheduler(int(task.name), policy, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, int(task.name), min(nice, LOWEST_NICE))
        except ProcessLookupError:
            continue  # the thread ended meanwhile
