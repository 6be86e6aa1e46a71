"""This computer: its processor, what it shows of itself, and what else runs on it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from hetrl.cache import VARIABLE, cache_folder
from hetrl.device_bridge.runner import telemetry
from hetrl.device_bridge.runner.foreign import busy_ms
from hetrl.device_bridge.runner.quota import Unavailable, quota_group
from hetrl.doctor.finding import Finding, broken, missing, ok

PROC, SYS = Path("/proc"), Path("/sys")
# Flags of /proc/cpuinfo (arch/x86/include/asm/cpufeatures.h and arch/arm64/kernel/cpuinfo.c in Linux) and their names.
FEATURES = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI",
    "avx512_bf16": "AVX-512 bf16", "amx_tile": "AMX", "amx_bf16": "AMX bf16", "amx_int8": "AMX int8",
    "asimd": "NEON", "asimdhp": "fp16", "asimddp": "dot product", "i8mm": "int8 matrices", "bf16": "bf16", "sve": "SVE",
}  # fmt: skip
WATCH_S = 0.5
MUCH_LOAD = 0.1  # share of the cores' time that spoils measurements
LITTLE_SPACE_MB = 2000.0  # weights of a large network and its pieces


def cpu(proc: Path = PROC) -> Finding:
    """The processor's name, and its instructions for arithmetic."""
    name = telemetry.cpu_model(proc)
    try:
        lines = (proc / "cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return missing("cpu", f"{name}; its features cannot be read here")
    fields = (line.partition(":") for line in lines)
    flags = {word for key, _, value in fields if key.strip() in ("flags", "Features") for word in value.split()}
    known = [label for flag, label in FEATURES.items() if flag in flags]
    return ok("cpu", f"{name}: {', '.join(known) or 'none of the features that engines look for'}")


def cores() -> Finding:
    """How many there are, and how many this process may use."""
    allowed, every = telemetry.all_cores(), os.cpu_count() or 1
    if len(allowed) < every:
        numbers = ",".join(map(str, allowed))
        return ok("cores", f"{len(allowed)} of {every} may be used: {numbers}")
    return ok("cores", f"{every}, all may be used")


def memory() -> Finding:
    total = telemetry.machine_memory_mb()
    return missing("memory", "cannot be read") if total is None else ok("memory", f"{total:.0f} MB")


def clocks(sys_folder: Path = SYS) -> Finding:
    found = telemetry.clocks(sys_folder)
    if not found:
        return missing("clocks", "cannot be read, so that throttling is only seen in the times")
    return ok(
        "clocks", f"{len(found)} cores, {min(c.value for c in found):.0f} to {max(c.value for c in found):.0f} MHz"
    )


def temperatures(sys_folder: Path = SYS) -> Finding:
    found = telemetry.temperatures(sys_folder)
    if not found:
        return missing("temperatures", "no thermal zone can be read")
    return ok("temperatures", f"{len(found)} zones, the hottest {max(t.value for t in found):.0f} degrees C")


def quota(proc: Path = PROC) -> Finding:
    """Whether CPU time can be limited."""
    try:
        group = quota_group(proc)
    except Unavailable as reason:
        return missing("cpu quota", str(reason), "use duty cycles or core sets for caps")
    return ok("cpu quota", f"may be set (control groups, version {group.version})")


def foreign_load(watch_s: float = WATCH_S, proc: Path = PROC) -> Finding:
    """How much of the cores other programs take now."""
    allowed = telemetry.all_cores()
    try:
        start, own = busy_ms(proc, allowed), time.process_time()
        began = time.perf_counter()
        time.sleep(watch_s)
        busy = busy_ms(proc, allowed) - start - 1000 * (time.process_time() - own)
    except (OSError, ValueError, IndexError):
        return missing("foreign load", "cannot be read here")
    passed_ms = 1000 * (time.perf_counter() - began)
    share = min(1.0, max(0.0, busy / (passed_ms * len(allowed))))
    if share > MUCH_LOAD:
        return broken("foreign load", f"{100 * share:.0f} % of the cores", "end other programs before you measure: top")
    return ok("foreign load", f"{100 * share:.0f} % of the cores")


def cache(folder: Path | None = None) -> Finding:
    """Whether submodels and weights can be kept."""
    folder = folder or cache_folder()
    elsewhere = f"export {VARIABLE}=/another/folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
        free_mb = shutil.disk_usage(folder).free / 1e6
    except OSError as error:
        return broken("cache", f"{folder}: {error.strerror}", elsewhere, needed=True)
    if free_mb < LITTLE_SPACE_MB:
        return broken("cache", f"{folder}: only {free_mb:.0f} MB free", elsewhere)
    return ok("cache", f"{folder}: {free_mb / 1000:.0f} GB free", needed=True)
