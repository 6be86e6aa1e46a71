"""How fast a virtual machine's cores are, beside how fast they can be.

A hypervisor that puts two virtual cores on one physical core tells neither of them: no time counts as stolen, all just
takes up to twice as long, for milliseconds or for hours. So the same little work is timed again and again.
On real hardware a core that slows down is hot, or was told to: that is how the device is, and nothing to leave out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hetrl.device_bridge.runner.telemetry import cpu_flags

STEPS = 1500  # some 50 us
TRIES = 2  # the faster one counts: an interrupt is not the core's speed


def on_virtual_machine(proc: Path = Path("/proc")) -> bool:
    """Whether a hypervisor says so; Arm's do not, and count as hardware."""
    return "hypervisor" in cpu_flags(proc)


def work_ms() -> float:
    """CPU time of a fixed piece of work, so that whoever else runs on this core according to its kernel is left out."""
    start = time.thread_time()
    value = 1.0
    for _ in range(STEPS):
        value *= 1.0000001
    return (time.thread_time() - start) * 1000


class Pace:
    """Remembers the best that it has seen of each core.

    :param measure: CPU time of the work on the core that it is called on.
    """

    def __init__(self, measure: Callable[[], float] = work_ms) -> None:
        self._measure = measure
        self._best_ms: dict[int, float] = {}

    def slowness(self, cores: Sequence[int]) -> float:
        """How many times longer than at best the slowest of these cores takes now; at least 1."""
        allowed = os.sched_getaffinity(0)
        slowest = 1.0
        try:
            for core in cores:
                os.sched_setaffinity(0, {core})
                now_ms = min(self._measure() for _ in range(TRIES))
                best_ms = self._best_ms[core] = min(now_ms, self._best_ms.get(core, now_ms))
                slowest = max(slowest, now_ms / best_ms)
        finally:
            os.sched_setaffinity(0, allowed)
        return slowest
