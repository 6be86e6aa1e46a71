"""What the machine shows of itself: memory, temperatures, clocks, load. What it does not show is left out."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024


@dataclass(frozen=True)
class Reading:
    """A thermal zone's temperature (degrees C) or a core's clock (MHz)."""

    name: str
    value: float


@dataclass(frozen=True)
class Telemetry:
    """One look at the machine.

    :param load: average number of processes that ran or wanted to, over a minute.
    """

    load: float | None
    temperatures_c: tuple[Reading, ...]
    clocks_mhz: tuple[Reading, ...]


def now_ms() -> float:
    """A clock that is never set back."""
    return time.perf_counter() * 1000


def look(sys_folder: Path = Path("/sys")) -> Telemetry:
    try:
        load: float | None = os.getloadavg()[0]
    except OSError:
        load = None
    return Telemetry(load, temperatures(sys_folder), clocks(sys_folder))


def temperatures(sys_folder: Path) -> tuple[Reading, ...]:
    """Thermal zones, see Documentation/ABI/testing/sysfs-class-thermal in Linux: thousandths of a degree."""
    found = []
    for zone in sorted(sys_folder.glob("class/thermal/thermal_zone*")):
        name, value = _text(zone / "type"), _number(zone / "temp")
        if value is not None:
            found.append(Reading(f"{zone.name}:{name}" if name else zone.name, value / 1000))
    return tuple(found)


def clocks(sys_folder: Path) -> tuple[Reading, ...]:
    """Clocks of cores, see Documentation/admin-guide/pm/cpufreq.rst in Linux: kHz."""
    found = []
    for file in sorted(sys_folder.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")):
        value = _number(file)
        if value is not None:
            found.append(Reading(file.parts[-3], value / 1000))
    return tuple(found)


def reset_peak_memory(proc: Path = Path("/proc")) -> bool:
    """Let the peak begin anew, see clear_refs in proc(5); False where the kernel cannot."""
    try:
        (proc / "self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory_mb(proc: Path = Path("/proc")) -> float | None:
    """The most that this process had in memory since the last reset, or ever."""
    return _status_mb(proc, "VmHWM:")


def memory_mb(proc: Path = Path("/proc")) -> float | None:
    """What this process has in memory."""
    return _status_mb(proc, "VmRSS:")


def _status_mb(proc: Path, field: str) -> float | None:
    for line in _text(proc / "self/status").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return None


def machine_memory_mb() -> float | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB
    except (OSError, ValueError):
        return None


def cpu_model(proc: Path = Path("/proc")) -> str:
    """The name that the processor goes by; Arm's kernels tell it under `Hardware`, if at all."""
    lines = [line.partition(":") for line in _text(proc / "cpuinfo").splitlines()]
    for wanted in ("model name", "Hardware"):
        for name, _, value in lines:
            if name.strip() == wanted:
                return value.strip()
    return platform.processor() or platform.machine()


def cpu_flags(proc: Path = Path("/proc")) -> tuple[str, ...]:
    """What the processor can do, in the kernel's words: x86's `flags`, Arm's `Features`."""
    for line in _text(proc / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(value.split())
    return ()


def processes_killed_for_memory(proc: Path = Path("/proc")) -> int | None:
    """How often this machine's kernel has killed a process because memory ran out."""
    for line in _text(proc / "vmstat").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return None


def all_cores() -> tuple[int, ...]:
    """Cores that this thread may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def use_cores(cores: tuple[int, ...]) -> None:
    """Keep this thread to these cores, unless it is already."""
    if hasattr(os, "sched_setaffinity") and all_cores() != cores:
        os.sched_setaffinity(0, cores)


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> float | None:
    try:
        return float(_text(file))
    except ValueError:
        return None
