"""Measures jobs in a runner, whatever happens to it: a failure is a value, and the next request gets a new runner."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from signal import Signals
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.channel import Channel, ChannelLost, NoSpace
from hetrl.device_bridge.runner.job import Job, job_to_json
from hetrl.device_bridge.runner.protocol import Hello, Loaded, Report, Reports, Request
from hetrl.device_bridge.runner_process import Died, Malformed, RunnerProcess, Silent
from hetrl.measurement import Failure, MeasurementError

LOST_STATUS = 255  # ssh's exit status for a connection that broke; the runner itself never ends with it
RUNS_OVER_TIME = 3  # a limit on time is checked between runs: warm-up, sampling and a settling run may each exceed it
HELPERS_S = 10.0  # for the frame probe and competitors to start

T = TypeVar("T")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When to give up.

    :param start_s: for a runner to say hello.
    :param load_s: for a job to load.
    :param run_s: for one inference.
    :param grace_s: what an answer may take on its way.
    :param memory_mb: address space of the runner, None for no limit.
    :param loaded: jobs that stay loaded, so that measuring them again is cheap.
    :param retries: how often a measurement is done again because the connection broke.
    :param backoff_s: pause before the first of these, doubled each time.
    """

    start_s: float = 60.0
    load_s: float = 60.0
    run_s: float = 30.0
    grace_s: float = 3.0
    memory_mb: float | None = None
    loaded: int = 4
    retries: int = 2
    backoff_s: float = 0.5


class _Lost(Exception):
    """The connection broke; the message says how."""


class _Failed(Exception):
    """The measurement failed; `restart` asks for a new runner."""

    def __init__(self, error: MeasurementError, *, restart: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.restart = restart


class RunnerClient:
    """A runner at the other end of a channel, started when it is needed; one measurement at a time.

    :param store: where the files of jobs and requests are.
    :ivar restarts: runners that had to be replaced; `reconnects`: measurements done again because a connection broke.
    """

    def __init__(self, channel: Channel, store: BlobStore, limits: Limits | None = None) -> None:
        self._channel = channel
        self._store = store
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._runner: RunnerProcess | None = None
        self._greeting: Hello | None = None  # the present runner's
        self._machine: Hello | None = None  # with engines
        self._loaded: OrderedDict[Job, int] = OrderedDict()  # the one used last at the end
        self._garbage = 0
        self._first_garbage = ""
        self.restarts = 0
        self.reconnects = 0

    def hello(self) -> Hello | MeasurementError:
        """What the machine is; asked once."""
        with self._lock:
            if self._machine is None:
                found = self._persistently(self._ask_machine)
                if isinstance(found, MeasurementError):
                    return found
                self._machine = found
            return self._machine

    def measure(self, job: Job, request: Request) -> Report | MeasurementError:
        """Measure one job."""
        with self._lock:
            return self._persistently(lambda: self._measure((job,), "measure", request, Report))

    def compare(self, jobs: Sequence[Job], request: Request) -> tuple[Report, ...] | MeasurementError:
        """Measure several jobs, interleaved: sample i of every report is of the same round.

        `runner.significance.significantly_faster` tells whether a difference means anything.
        """
        with self._lock:
            found = self._persistently(lambda: self._measure(tuple(jobs), "compare", request, Reports))
        return found if isinstance(found, MeasurementError) else found.reports

    @property
    def garbage_lines(self) -> int:
        """Lines on runners' stdout that were no answers."""
        return self._garbage + (self._runner.garbage if self._runner else 0)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how it went, a sentence each."""
        first = self._first_garbage or (self._runner.first_garbage if self._runner else "")
        said = (
            (self.restarts, f"the runner was replaced {_times(self.restarts)}"),
            (self.reconnects, f"the connection was lost {_times(self.reconnects)}"),
            (self.garbage_lines, f"{self.garbage_lines} lines of the runner were no answers, such as {first!r}"),
        )
        return tuple(sentence for count, sentence in said if count)

    def close(self) -> None:
        """End the runner and the connection; may be called twice."""
        with self._lock:
            if self._runner is not None:
                self._runner.end()
            self._kill()
            self._channel.close()

    def __enter__(self) -> RunnerClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _persistently(self, action: Callable[[], T]) -> T | MeasurementError:
        """Do it, and again when the connection broke; whatever ends the runner, the next request gets a new one."""
        pause_s = self._limits.backoff_s
        for attempt in range(self._limits.retries + 1):
            try:
                return self._once(action)
            except NoSpace as full:  # trying again makes no room; the runner, and all that it has loaded, is well
                return MeasurementError(Failure.NO_SPACE, str(full))
            except (ChannelLost, _Lost) as lost:
                self._kill()
                reason = str(lost)
            except BaseException:
                self._kill()
                raise
            if attempt < self._limits.retries:
                self.reconnects += 1
                time.sleep(pause_s)
                pause_s *= 2
        return MeasurementError(Failure.LOST, reason)

    def _once(self, action: Callable[[], T]) -> T | MeasurementError:
        try:
            return action()
        except _Failed as failed:
            if failed.restart:
                self._replace()
            return failed.error

    def _ask_machine(self) -> Hello:
        return self._call(self._running(), "hello", {"engines": True}, self._limits.start_s, Hello, "hello")

    def _measure(self, jobs: tuple[Job, ...], do: str, request: Request, kind: type[T]) -> T:
        others = self._loaded.keys() - set(jobs)
        try:
            return self._measure_once(jobs, do, request, kind)
        except _Failed as failed:
            if failed.error.kind is not Failure.OUT_OF_MEMORY or not others:
                raise
        self._replace()  # other jobs held memory: once more without them
        return self._measure_once(jobs, do, request, kind)

    def _measure_once(self, jobs: tuple[Job, ...], do: str, request: Request, kind: type[T]) -> T:
        limits, sampling = self._limits, request.sampling
        references = [job.reference for job in jobs if job.reference is not None]
        needed = [*(name for job in jobs for name in job.files), request.inputs, *references]
        self._channel.push(tuple(dict.fromkeys(needed)), self._store)
        runner = self._running()
        handles = [self._load(runner, job, jobs) for job in jobs]
        which: dict[str, Any] = {"handle": handles[0]} if do == "measure" else {"handles": handles}
        per_job_s = sampling.max_warmup_s + sampling.max_s + RUNS_OVER_TIME * limits.run_s
        fields = {**which, "request": request, "run_limit_s": limits.run_s}
        return self._call(runner, do, fields, HELPERS_S + len(jobs) * per_job_s, kind, "an inference", limits.run_s)

    def _load(self, runner: RunnerProcess, job: Job, keep: tuple[Job, ...]) -> int:
        """The job's handle; the jobs that were used longest ago make room, those in `keep` stay."""
        if job not in self._loaded:
            limits = self._limits
            for old in [old for old in self._loaded if old not in keep]:
                if len(self._loaded) < max(limits.loaded, len(keep)):
                    break
                self._call(runner, "unload", {"handle": self._loaded.pop(old)}, limits.load_s, dict, "unloading")
            fields = {"job": job_to_json(job), "limit_s": limits.load_s, "memory_mb": limits.memory_mb}
            self._loaded[job] = self._call(runner, "load", fields, limits.load_s, Loaded, "loading").handle
        self._loaded.move_to_end(job)
        return self._loaded[job]

    def _call(
        self,
        runner: RunnerProcess,
        do: str,
        fields: dict[str, Any],
        limit_s: float,
        kind: type[T],
        what: str,
        watched_s: float | None = None,
    ) -> T:
        """One request.

        :param what: what takes the time, for messages; the runner's own alarm ends it after `watched_s`.
        :raises _Failed, _Lost: no answer, or a bad one.
        """
        watched_s = limit_s if watched_s is None else watched_s
        try:
            answer = runner.call(do, fields, limit_s + self._limits.grace_s)
            if answer.error is not None:
                restart = answer.error.kind in (Failure.CRASHED, Failure.OUT_OF_MEMORY) or answer.worn
                raise _Failed(answer.error, restart=restart)
            found = msgspec.json.decode(answer.ok, type=kind)
        except Silent:
            late = f"the runner did not answer for {limit_s:g} s ({what}) and was killed"
            raise _Failed(MeasurementError(Failure.TIMEOUT, late), restart=True) from None
        except (Malformed, msgspec.DecodeError, ValueError) as error:
            nonsense = f"the runner's answer makes no sense: {error}"
            raise _Failed(MeasurementError(Failure.CRASHED, nonsense), restart=True) from None
        except Died as death:
            raise self._died(death, what, watched_s) from None
        if answer.worn:
            self._kill()  # nothing went wrong, so it does not count as replaced
        return found

    def _died(self, death: Died, what: str, watched_s: float) -> Exception:
        """Why the runner is gone."""
        words = f"; its last words: {death.tail}" if death.tail else ""
        if death.status == LOST_STATUS:
            return _Lost(f"the connection to the runner broke{words}")
        kind, message = Failure.CRASHED, f"the runner ended with exit status {death.status}{words}"
        if death.status is None:
            message = f"the runner closed its output{words}"
        elif death.signal is Signals.SIGALRM:
            kind, message = Failure.TIMEOUT, f"{what} took longer than {watched_s:g} s; the runner was ended"
        elif death.signal is Signals.SIGKILL:
            return _Failed(MeasurementError(*self._killed(words)), restart=False)
        elif death.signal is not None:
            message = f"the runner died of {death.signal.name}{words}"
            if death.signal is Signals.SIGABRT and "bad_alloc" in death.tail:
                kind = Failure.OUT_OF_MEMORY
        return _Failed(MeasurementError(kind, message), restart=True)

    def _killed(self, words: str) -> tuple[Failure, str]:
        """Somebody killed the runner: the kernel, for want of memory, if a new runner finds its count risen."""
        before = self._greeting.killed_for_memory if self._greeting else None
        self._replace()
        now = None
        if before is not None:
            try:
                self._running()
                now = self._greeting.killed_for_memory if self._greeting else None
            except (_Failed, _Lost, ChannelLost):
                self._kill()
        if before is None or now is None:
            return Failure.CRASHED, f"the runner was killed (out of memory?){words}"
        if now > before:
            return Failure.OUT_OF_MEMORY, f"the kernel killed the runner: out of memory{words}"
        return Failure.CRASHED, f"the runner was killed (SIGKILL), and not for want of memory{words}"

    def _running(self) -> RunnerProcess:
        """The runner, started if need be."""
        if self._runner is not None and not self._runner.alive:
            self._replace()  # it died between two requests
        if self._runner is None:
            self._runner = RunnerProcess(self._channel.spawn())
            limit_s = self._limits.start_s
            self._greeting = self._call(self._runner, "hello", {"engines": False}, limit_s, Hello, "the start")
        return self._runner

    def _replace(self) -> None:
        if self._runner is not None:
            self.restarts += 1
        self._kill()

    def _kill(self) -> None:
        """End the runner, and all that it has loaded; what its output was is remembered."""
        runner, self._runner = self._runner, None
        self._greeting = None
        self._loaded.clear()
        if runner is not None:
            runner.kill()
            self._garbage += runner.garbage
            self._first_garbage = self._first_garbage or runner.first_garbage


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
