"""What goes over the wire: one JSON object a line, an answer for every request.

    {"id": 1, "do": "hello", "engines": true}
    {"id": 2, "do": "load", "job": {...}, "limit_s": 60, "memory_mb": null}
    {"id": 3, "do": "measure", "handle": 0, "request": {...}, "run_limit_s": 10}
    {"id": 4, "do": "compare", "handles": [0, 1], "request": {...}, "run_limit_s": 10}
    {"id": 5, "do": "unload", "handle": 0}
    {"id": 6, "do": "bye"}

Answers are {"id": 1, "ok": {...}} or {"id": 1, "error": {"kind": "unsupported", "message": "..."}}; an answer with
"worn" true asks for a new runner, for this one keeps a lowered priority.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hetrl.device_bridge.runner.executor import Span
from hetrl.device_bridge.runner.frames import Frames
from hetrl.device_bridge.runner.priorities import NO_CAP, Cap, CapSupport
from hetrl.device_bridge.runner.sampling import DEFAULT_SAMPLING, Sampling
from hetrl.device_bridge.runner.telemetry import Reading, Telemetry


@dataclass(frozen=True)
class Screen:
    """A user interface that draws beside inference.

    :param work_ms: CPU time of a frame.
    :param cores: where it may run; empty for everywhere.
    :param timed: a frame ends when it had that CPU time, not after the same work every time (see `frames`).
    """

    rate_hz: float = 60.0
    work_ms: float = 4.0
    cores: tuple[int, ...] = ()
    timed: bool = False

    def __post_init__(self) -> None:
        if not (1 <= self.rate_hz <= 1000 and 0 <= self.work_ms <= 1000):
            raise ValueError(f"frames of {self.work_ms} ms at {self.rate_hz} Hz")


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to measure.

    :param inputs: blob of the job's inputs (`arrays.pack_arrays`).
    :param max_output_error: a larger error of the outputs makes the measurement fail.
    :param competitors: busy processes beside it.
    """

    inputs: str
    max_output_error: float | None = None
    sampling: Sampling = DEFAULT_SAMPLING
    competitors: int = 0
    screen: Screen | None = None
    cap: Cap = NO_CAP


@dataclass(frozen=True)
class EngineState:
    """An engine: its version, or the reason why it is not there; names of its devices beside the CPU, in its order."""

    name: str
    version: str | None
    reason: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Hello:
    """The machine that a runner is on.

    :param engines: empty unless asked for.
    :param cores: those that the runner may use.
    :param cpu_flags: what the CPU can do, in the kernel's words; empty where it does not say.
    :param killed_for_memory: processes that the kernel has killed so far because memory ran out.
    """

    pid: int
    python: str
    platform: str
    machine: str
    cpu_model: str
    cores: tuple[int, ...]
    memory_mb: float | None
    engines: tuple[EngineState, ...]
    caps: tuple[CapSupport, ...]
    temperatures_c: tuple[Reading, ...]
    clocks_mhz: tuple[Reading, ...]
    killed_for_memory: int | None
    cpu_flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    handle: int
    load_ms: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a job did.

    :param latency_ms: the median of `samples_ms`, idle time of caps included.
    :param interval_ms: its confidence interval, None for too few samples.
    :param redone: samples that foreign load spoiled and that were taken again.
    :param foreign_load: kept samples had more foreign load than asked for, `foreign_share` of the cores.
    :param timeline: of the run at the median, the faster one of two.
    :param output_error: largest difference over largest value, None without a reference.
    :param peak_memory_mb: of the runner while it loaded and ran this job, less what other loaded jobs hold.
    :param frames: of a measurement beside a screen; a comparison cannot tell whose frames they are.
    """

    latency_ms: float
    interval_ms: tuple[float, float] | None
    samples_ms: tuple[float, ...]
    load_ms: float
    warmup_runs: int
    redone: int
    foreign_share: float
    foreign_load: bool
    timeline: tuple[Span, ...]
    output_error: float | None
    peak_memory_mb: float | None
    before: Telemetry
    after: Telemetry
    frames: Frames | None


@dataclass(frozen=True)
class Reports:
    """One per job; sample i of each is of the same round."""

    reports: tuple[Report, ...]


def request_from_json(data: dict[str, Any]) -> Request:
    """
    :raises KeyError, TypeError, ValueError: it is no request.
    """
    screen = data.get("screen")
    return Request(
        **{
            **data,
            "sampling": Sampling(**data["sampling"]),
            "screen": None if screen is None else Screen(**{**screen, "cores": tuple(screen["cores"])}),
            "cap": Cap(**data["cap"]),
        }
    )
