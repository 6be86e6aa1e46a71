"""The inference libraries of this computer: whether each is there, and gets one operator right."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from hetrl.device_bridge.runner.engines import NAMES
from hetrl.doctor.finding import Finding, State, broken, missing, ok

TIMEOUT_S = 60.0
LARGEST_ERROR = 1e-3
VULKAN = "vulkan"
MESA = "apt install mesa-vulkan-drivers"


class ProbeFailed(Exception):
    """The probe of an engine ended without an answer; the message says why."""


def engine(name: str) -> Finding:
    """One engine, on the CPU."""
    install = f"pip install 'hetrl[{name}]'"
    if find_spec(name) is None:
        return missing(name, "not installed", install)
    try:
        answer = ask_probe(name)
    except ProbeFailed as failure:
        return broken(name, str(failure), f"pip install --force-reinstall {name}")
    return _judged(name, f"{answer['version']}, one operator runs", float(answer["error"]))


def engines() -> tuple[Finding, ...]:
    return tuple(engine(name) for name in NAMES)


def any_engine(found: tuple[Finding, ...]) -> Finding:
    """Real measurements need at least one."""
    working = [finding.check for finding in found if finding.state is State.OK]
    if working:
        return ok("engines", f"{len(working)} of {len(found)} work", needed=True)
    return missing("engines", "none works, so that nothing can run here", "pip install 'hetrl[ncnn]'", needed=True)


def vulkan() -> tuple[Finding, ...]:
    """Each Vulkan device, as ncnn sees them."""
    if find_spec("ncnn") is None:
        return (missing(VULKAN, "ncnn is not installed, which drives Vulkan devices", "pip install 'hetrl[ncnn]'"),)
    try:
        names = ask_probe("ncnn", "devices")["devices"]
    except ProbeFailed as failure:
        return (broken(VULKAN, str(failure), "vulkaninfo --summary"),)
    if not names:
        return (missing(VULKAN, "no device", f"install its driver; one in software: {MESA}"),)
    return tuple(_vulkan_device(number, name) for number, name in enumerate(names))


def _vulkan_device(number: int, name: str) -> Finding:
    check = f"{VULKAN}{number}"
    try:
        answer = ask_probe("ncnn", str(number))
    except ProbeFailed as failure:
        return broken(check, f"{name}: {failure}", "vulkaninfo --summary")
    return _judged(check, f"{name}, one operator runs", float(answer["error"]))


def _judged(check: str, detail: str, error: float) -> Finding:
    if not error <= LARGEST_ERROR:  # NaN is wrong too
        return broken(check, f"a convolution is wrong by {error:g}", "update the library, or its driver")
    return ok(check, detail)


def ask_probe(*words: str) -> dict[str, Any]:
    """What `hetrl.doctor.engine_probe` says.

    :raises ProbeFailed: it crashed, hung, or raised.
    """
    command = [sys.executable, "-m", "hetrl.doctor.engine_probe", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"gave no answer in {TIMEOUT_S:g} s") from None
    if done.returncode < 0:
        raise ProbeFailed(f"crashed with signal {-done.returncode}")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ProbeFailed(lines[-1] if lines else f"ended with status {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
