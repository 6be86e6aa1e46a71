"""CPU time that programs other than this measurement take: the kernel's count of busy time, less our own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hetrl.device_bridge.runner.sampling import NO_FOREIGN, Foreign

# Columns of /proc/stat, see proc(5). Stolen time counts: another virtual machine is foreign load too. Guest time is
# in `user` and `nice` already, and what waits for a disk (iowait) leaves the core free.
USER, NICE, SYSTEM, IRQ, SOFTIRQ, STEAL = 0, 1, 2, 5, 6, 7
BUSY = (USER, NICE, SYSTEM, IRQ, SOFTIRQ, STEAL)


def watch_foreign(helpers: Sequence[int], cores: Sequence[int], proc: Path = Path("/proc")) -> Foreign:
    """Foreign load on `cores`, beside this process and its helpers; none where the kernel does not tell.

    :param helpers: process ids.
    """
    try:
        busy_ms(proc, cores)
    except (OSError, ValueError, IndexError):
        return NO_FOREIGN
    return Foreign(_total(helpers, tuple(cores), proc), len(cores))


def _total(helpers: Sequence[int], cores: tuple[int, ...], proc: Path) -> Callable[[], float]:
    def total_ms() -> float:
        ours = time.process_time() * 1000 + sum(process_ms(proc, pid) for pid in helpers)
        return busy_ms(proc, cores) - ours

    return total_ms


def busy_ms(proc: Path, cores: Sequence[int]) -> float:
    """How long these cores have worked since the machine started, summed; resolution is a clock tick (10 ms)."""
    wanted = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in (proc / "stat").read_text().splitlines():
        name, *columns = line.split()
        if name in wanted:
            wanted.discard(name)
            ticks += sum(int(columns[i]) for i in BUSY)
    if wanted:
        raise ValueError(f"{proc}/stat does not know {sorted(wanted)[0]}")
    return ticks * 1000 / os.sysconf("SC_CLK_TCK")


def process_ms(proc: Path, pid: int) -> float:
    """CPU time of a process of one thread; 0 for one that has ended."""
    try:
        return int((proc / str(pid) / "schedstat").read_text().split()[0]) / 1e6
    except (OSError, ValueError, IndexError):
        pass  # a kernel without scheduler statistics: ticks then
    try:
        columns = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(columns[11]) + int(columns[12])) * 1000 / os.sysconf("SC_CLK_TCK")  # utime and stime
