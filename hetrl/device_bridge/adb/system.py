"""What a phone is and how it fares, read from its properties, `/proc`, `/sys` and `dumpsys`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import msgspec

from hetrl.device_bridge.adb.adb import Adb

# `$1` is where the system's root is (tests put one elsewhere), the others are patterns; a line is `path:content`.
_READ = 'root=$1; shift; cd "$root/" && for p in "$@"; do grep -sH . $p; done; true'
_CLOCKS = "sys/devices/system/cpu/cpu[0-9]*/cpufreq"
_ZONES = "sys/class/thermal/thermal_zone*"
_GPU_NAMES = ("sys/class/kgsl/kgsl-3d0/gpu_model", "sys/class/misc/mali0/device/gpuinfo")
# Share of the time that the GPU is busy: of Qualcomm as two counters, of all others in percent first.
_ADRENO_BUSY = "sys/class/kgsl/kgsl-3d0/gpubusy"
_PERCENT_BUSY = (
    "sys/class/kgsl/kgsl-3d0/gpu_busy_percentage",
    "sys/class/misc/mali0/device/utilization",
    "sys/kernel/gpu/gpu_busy",
    "sys/kernel/ged/hal/gpu_utilization",
)


class Core(msgspec.Struct, frozen=True):
    """A CPU core; clocks are None where the phone hides them."""

    number: int
    max_mhz: float | None


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a phone is made of; empty or None is what it does not say."""

    soc: str
    board: str
    model: str
    abi: str
    android: str
    cores: tuple[Core, ...]
    memory_mb: float | None
    gpu: str | None


class Zone(msgspec.Struct, frozen=True):
    """A thermal zone and its temperature in degrees C."""

    name: str
    celsius: float


class Battery(msgspec.Struct, frozen=True):
    """:param powered: whether it is being charged, which heats it."""

    level: float
    celsius: float | None
    powered: bool


class Telemetry(msgspec.Struct, frozen=True, kw_only=True):
    """How a phone fares now.

    :param clocks_mhz: by core.
    :param gpu_busy: share (0 to 1) of the time since it was last read, None where it is hidden.
    """

    zones: tuple[Zone, ...]
    clocks_mhz: tuple[tuple[int, float], ...]
    gpu_busy: float | None
    battery: Battery | None
    memory_free_mb: float | None


def capabilities(adb: Adb, root: str = "") -> Capabilities:
    """Ask a phone what it is.

    :param root: folder that stands for `/` when files are read.
    :raises ChannelLost: it does not answer.
    """

    def prop(*names: str) -> str:
        for name in names:
            if value := adb.shell(["getprop", name]).stdout.strip():
                return value
        return ""

    files = _read(adb, root, [f"{_CLOCKS}/cpuinfo_max_freq", "sys/devices/system/cpu/possible", *_GPU_NAMES])
    clocks = dict(_by_core(files, "cpuinfo_max_freq"))
    numbers = _range(files.get("sys/devices/system/cpu/possible", "")) or sorted(clocks)
    return Capabilities(
        soc=prop("ro.soc.model", "ro.board.platform", "ro.hardware"),
        board=prop("ro.product.board", "ro.board.platform"),
        model=prop("ro.product.model"),
        abi=prop("ro.product.cpu.abi"),
        android=prop("ro.build.version.release"),
        cores=tuple(Core(number, clocks.get(number)) for number in numbers),
        memory_mb=_meminfo(adb, root, "MemTotal"),
        gpu=next((files[name] for name in _GPU_NAMES if name in files), None) or _gles(adb),
    )


def telemetry(adb: Adb, root: str = "") -> Telemetry:
    """Ask a phone how it fares.

    :param root: as for `capabilities`.
    :raises ChannelLost: it does not answer.
    """
    wanted = [f"{_ZONES}/type", f"{_ZONES}/temp", f"{_CLOCKS}/scaling_cur_freq", _ADRENO_BUSY, *_PERCENT_BUSY]
    files = _read(adb, root, wanted)
    return Telemetry(
        zones=_zones(files),
        clocks_mhz=tuple(sorted(_by_core(files, "scaling_cur_freq"))),
        gpu_busy=_gpu_busy(files),
        battery=parse_battery(adb.shell(["dumpsys", "battery"]).stdout),
        memory_free_mb=_meminfo(adb, root, "MemAvailable"),
    )


def parse_battery(text: str) -> Battery | None:
    """`dumpsys battery`: `name: value` lines; level of scale, temperature in tenths of a degree C."""
    fields = dict(re.findall(r"^\s*([A-Za-z ]+): (\S+)\s*$", text, re.MULTILINE))
    level, scale = _float(fields.get("level")), _float(fields.get("scale"))
    if level is None or not scale:
        return None
    tenths = _float(fields.get("temperature"))
    powered = any(value == "true" for name, value in fields.items() if name.endswith("powered"))
    return Battery(level / scale, None if tenths is None else tenths / 10, powered)


def _read(adb: Adb, root: str, patterns: Sequence[str]) -> dict[str, str]:
    """The first line of each readable file, by path below the root."""
    lines = adb.shell(["sh", "-c", _READ, "hetrl", root, *patterns]).stdout.splitlines()
    pairs = [line.partition(":") for line in lines]
    found: dict[str, str] = {}
    for path, colon, content in pairs:
        if colon:
            found.setdefault(path, content.strip())
    return found


def _zones(files: dict[str, str]) -> tuple[Zone, ...]:
    """Temperatures are in thousandths of a degree C (Linux, Documentation/ABI/testing/sysfs-class-thermal)."""
    found = []
    for path, content in sorted(files.items()):
        thousandths = _float(content) if path.endswith("/temp") else None
        if thousandths is not None:
            folder = path.removesuffix("/temp")
            found.append(Zone(files.get(f"{folder}/type", PurePosixPath(folder).name), thousandths / 1000))
    return tuple(found)


def _gpu_busy(files: dict[str, str]) -> float | None:
    counters = [_float(word) for word in files.get(_ADRENO_BUSY, "").split()]
    if len(counters) == 2 and counters[0] is not None and counters[1]:
        return min(1.0, counters[0] / counters[1])
    for path in _PERCENT_BUSY:
        words = files.get(path, "").replace("%", " ").split()
        percent = _float(words[0]) if words else None
        if percent is not None:
            return min(1.0, percent / 100)
    return None


def _by_core(files: dict[str, str], name: str) -> list[tuple[int, float]]:
    """Clocks in MHz by core; the files have kHz."""
    found = []
    for path, content in files.items():
        match = re.fullmatch(rf"sys/devices/system/cpu/cpu(\d+)/cpufreq/{name}", path)
        khz = _float(content)
        if match and khz is not None:
            found.append((int(match[1]), khz / 1e3))
    return found


def _range(text: str) -> list[int]:
    """`0-3,6` in `/sys/devices/system/cpu/possible`."""
    numbers: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", word)
        if match:
            numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return numbers


def _meminfo(adb: Adb, root: str, name: str) -> float | None:
    text = adb.shell(["cat", f"{root}/proc/meminfo"]).stdout
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) * 1024 / 1e6 if match else None


def _gles(adb: Adb) -> str | None:
    """`GLES: Qualcomm, Adreno (TM) 640, OpenGL ES 3.2 ...` in `dumpsys SurfaceFlinger`."""
    match = re.search(r"^GLES: (.+)$", adb.shell(["dumpsys", "SurfaceFlinger"]).stdout, re.MULTILINE)
    words = match[1].split(", ") if match else []
    return words[1] if len(words) > 1 else None


def _float(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
