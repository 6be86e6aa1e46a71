"""Answers requests: loads jobs, runs them under conditions, and says what it saw."""

from __future__ import annotations

import os
import platform
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from hetrl.device_bridge.runner import protocol, telemetry
from hetrl.device_bridge.runner.arrays import Array, output_error, unpack_arrays
from hetrl.device_bridge.runner.competitors import Competitors
from hetrl.device_bridge.runner.engines import NAMES, find_engine
from hetrl.device_bridge.runner.executor import Span
from hetrl.device_bridge.runner.foreign import watch_foreign
from hetrl.device_bridge.runner.frames import FrameCount, FrameProbe
from hetrl.device_bridge.runner.job import Job, job_from_json
from hetrl.device_bridge.runner.priorities import capped, present_priority, supported_caps
from hetrl.device_bridge.runner.protocol import EngineState, Hello, Report, Request
from hetrl.device_bridge.runner.quota import Unavailable
from hetrl.device_bridge.runner.sampling import sample, warm_up

BLOB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
OUT_OF_MEMORY = ("bad_alloc", "out of memory", "out_of_device_memory", "failed to allocate", "cannot allocate memory")


class Executable(Protocol):
    """A loaded job; the executor is one."""

    @property
    def outputs(self) -> Mapping[str, Array]: ...
    @property
    def timeline(self) -> Sequence[Span]: ...
    def run(self, inputs: Mapping[str, Array]) -> None: ...
    def close(self) -> None: ...


Loader = Callable[[Job, Path], Executable]


class Refused(Exception):
    """A request that fails for a reason of its own.

    :param kind: one of `hetrl.measurement.Failure`.
    :param output_error: of a wrong output that is finite.
    """

    def __init__(self, kind: str, message: str, output_error: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.output_error = output_error


@dataclass(frozen=True)
class Handle:
    """A loaded job, and what loading it took.

    :param cores: where its loading left this thread: an executor may pin the thread that calls it, for each is as if
        it were the only one.
    """

    job: Job
    executable: Executable
    cores: tuple[int, ...]
    load_ms: float
    peak_mb: float | None
    held_mb: float


class Server:
    """The state of a runner.

    :param folder: where blobs are.
    :param load: makes a job ready to run.
    """

    def __init__(self, folder: Path, load: Loader) -> None:
        self._folder = folder
        self._load_job = load
        self._cores = telemetry.all_cores()  # before an engine pins this thread
        self._handles: dict[int, Handle] = {}
        self._next = 0
        self._priority = present_priority()
        self._steps_per_ms = 0.0  # of the frame probe's work, the best seen: frames stay the same all session long

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request, whatever happens; only a kill or an exit gets through."""
        answer: dict[str, Any] = {"id": request.get("id")}
        try:
            answer["ok"] = self._do(request)
        except Exception as error:  # engines raise anything
            kind, message = _explain(error, loading=request.get("do") == "load")
            answer["error"] = {"kind": kind, "message": message}
            if isinstance(error, Refused) and error.output_error is not None:
                answer["error"]["output_error"] = error.output_error
        if present_priority() != self._priority:
            answer["worn"] = True
        return answer

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.get("do"):
            case "hello":
                return asdict(hello(self._cores, with_engines=request["engines"]))
            case "load":
                job = job_from_json(request["job"])
                return asdict(self._load(job, request["limit_s"], request["memory_mb"]))
            case "measure":
                wanted = protocol.request_from_json(request["request"])
                return asdict(self._measure([request["handle"]], wanted, request["run_limit_s"])[0])
            case "compare":
                wanted = protocol.request_from_json(request["request"])
                reports = self._measure(request["handles"], wanted, request["run_limit_s"])
                return asdict(protocol.Reports(tuple(reports)))
            case "unload":
                self._unload(request["handle"])
                return {}
            case other:
                raise Refused("crashed", f"the runner does not know the request {other!r}")

    def _load(self, job: Job, limit_s: float, memory_mb: float | None) -> protocol.Loaded:
        for name in job.files:
            self._blob(name)
        if memory_mb is not None:
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (int(memory_mb * telemetry.MIB), hard))
        telemetry.reset_peak_memory()
        before_mb = telemetry.memory_mb() or 0.0
        others_mb = self._held_mb()
        telemetry.use_cores(self._cores)
        start = telemetry.now_ms()
        with deadly_alarm(limit_s):
            executable = self._load_job(job, self._folder)
        load_ms = telemetry.now_ms() - start
        peak_mb = telemetry.peak_memory_mb()
        handle, self._next = self._next, self._next + 1
        self._handles[handle] = Handle(
            job,
            executable,
            telemetry.all_cores(),
            load_ms,
            None if peak_mb is None else peak_mb - others_mb,
            max(0.0, (telemetry.memory_mb() or 0.0) - before_mb),
        )
        return protocol.Loaded(handle, load_ms)

    def _unload(self, handle: int) -> None:
        self._handle(handle).executable.close()
        del self._handles[handle]

    def _measure(self, numbers: Sequence[int], request: Request, run_limit_s: float) -> list[Report]:
        handles = [self._handle(number) for number in numbers]
        references = [
            None if job.reference is None else unpack_arrays(self._blob(job.reference), job.outputs)
            for job in (handle.job for handle in handles)
        ]
        runs = [self._run_of(handle, request, run_limit_s) for handle in handles]
        before = telemetry.look()
        with ExitStack() as stack:
            # The probe first, so that its work is calibrated in quiet; the cap last, for helpers inherit it.
            probe: FrameProbe | None = None
            pids: tuple[int, ...] = ()
            if request.screen is not None:
                probe = stack.enter_context(self._probe(request.screen))
                pids += probe.pids
                self._steps_per_ms = probe.steps_per_ms
            pids += stack.enter_context(Competitors(request.competitors, self._cores)).pids
            stack.enter_context(capped(request.cap))
            telemetry.reset_peak_memory()
            warmups = [warm_up(run, request.sampling, telemetry.now_ms) for run in runs]
            errors = [
                _check(handle, reference, request, f"job {place} of {len(handles)}")
                for place, (handle, reference) in enumerate(zip(handles, references, strict=True), 1)
            ]
            foreign = watch_foreign(pids, self._cores)
            count = None if probe is None else FrameCount(probe)
            ended = None if count is None else count.window_ended
            sampled = sample(runs, request.sampling, telemetry.now_ms, foreign, ended)
            frames = count.kept if count is not None and len(handles) == 1 else None
            peak_mb = telemetry.peak_memory_mb()
            after = telemetry.look()
            return [
                Report(
                    latency_ms=seen.median_ms,
                    interval_ms=seen.interval_ms,
                    samples_ms=seen.samples_ms,
                    load_ms=handle.load_ms,
                    warmup_runs=warmup,
                    redone=seen.redone,
                    foreign_share=seen.foreign_share,
                    foreign_load=seen.foreign_load,
                    timeline=seen.typical,
                    output_error=error,
                    peak_memory_mb=self._peak_of(handle, peak_mb),
                    before=before,
                    after=after,
                    frames=frames,
                )
                for handle, seen, warmup, error in zip(handles, sampled, warmups, errors, strict=True)
            ]

    def _probe(self, screen: protocol.Screen) -> FrameProbe:
        return FrameProbe(
            screen.rate_hz, screen.work_ms, screen.cores or self._cores, self._steps_per_ms, timed=screen.timed
        )

    def _run_of(self, handle: Handle, request: Request, limit_s: float) -> Callable[[], tuple[Span, ...]]:
        inputs = unpack_arrays(self._blob(request.inputs), handle.job.inputs)
        executable = handle.executable

        def run() -> tuple[Span, ...]:
            telemetry.use_cores(handle.cores)
            with deadly_alarm(limit_s):
                executable.run(inputs)
            return tuple(executable.timeline)

        return run

    def _peak_of(self, handle: Handle, peak_mb: float | None) -> float | None:
        if peak_mb is None or handle.peak_mb is None:
            return None
        return max(handle.peak_mb, peak_mb - (self._held_mb() - handle.held_mb))

    def _held_mb(self) -> float:
        return sum(handle.held_mb for handle in self._handles.values())

    def _handle(self, number: int) -> Handle:
        if number not in self._handles:
            raise Refused("crashed", f"no job has the handle {number!r}")
        return self._handles[number]

    def _blob(self, name: str) -> Path:
        """A file of the blob folder, and of no other."""
        if not BLOB_NAME.fullmatch(name):
            raise Refused("unsupported", f"{name!r} is no name of a blob")
        return self._folder / name


def _check(handle: Handle, reference: Mapping[str, Array] | None, request: Request, name: str) -> float | None:
    """How wrong the outputs of the last run are.

    :param name: for messages.

    :raises Refused: too wrong.
    """
    if reference is None:
        return None
    error = output_error(handle.executable.outputs, reference)
    limit = request.max_output_error
    if error == float("inf") or (limit is not None and error > limit):
        wanted = "is not finite" if limit is None else f"is over {limit:g}"
        said = f"the output of {name} is wrong: its error, {error:.3g} of its largest value, {wanted}"
        raise Refused("wrong_output", said, None if error == float("inf") else error)
    return error


@contextmanager
def deadly_alarm(limit_s: float) -> Iterator[None]:
    """The kernel kills this process (SIGALRM) if the block takes longer, even if it hangs inside of an engine."""
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def hello(cores: tuple[int, ...], *, with_engines: bool) -> Hello:
    seen = telemetry.look()
    return Hello(
        pid=os.getpid(),
        python=platform.python_version(),
        platform=sys.platform,
        machine=platform.machine(),
        cpu_model=telemetry.cpu_model(),
        cores=cores,
        memory_mb=telemetry.machine_memory_mb(),
        engines=tuple(map(_engine_state, NAMES)) if with_engines else (),
        caps=supported_caps(),
        temperatures_c=seen.temperatures_c,
        clocks_mhz=seen.clocks_mhz,
        killed_for_memory=telemetry.processes_killed_for_memory(),
        cpu_flags=telemetry.cpu_flags(),
    )


def _engine_state(name: str) -> EngineState:
    try:
        engine = find_engine(name)
        return EngineState(name, engine.version(), "", engine.devices())
    except Exception as error:  # a broken library fails in any way
        return EngineState(name, None, f"{type(error).__name__}: {error}")


def _explain(error: Exception, *, loading: bool) -> tuple[str, str]:
    """The kind of failure (`hetrl.measurement.Failure`) and one line."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, Refused):
        return error.kind, str(error)
    if isinstance(error, MemoryError) or any(words in text.lower() for words in OUT_OF_MEMORY):
        return "out_of_memory", text
    if isinstance(error, Unavailable | ImportError | NotImplementedError):
        return "unsupported", text
    return ("unsupported" if loading else "crashed"), text
