"""A user interface beside inference: a process that draws at a fixed rate and counts the frames it misses.

Every refresh of the screen wants a frame. A frame begins at a refresh, does a set amount of CPU work, and has to end
before the next one; a frame that ends later is dropped at every refresh that it misses, and the next frame begins at
the refresh after its end.

The work is a number of instructions, so that a core that slows down drops frames, as on a phone. Where neighbours of a
virtual machine slow its cores down at will, that counts them, and not inference: there frames may be timed instead.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from hetrl.device_bridge.runner.helpers import begin_helper, end_helper, start_helper

CALIBRATION_ROUNDS = 60
CALIBRATION_STEPS = 20_000  # a millisecond or so
CALIBRATION_PAUSE_S = 0.002  # spreads them over more moments, of which some are quiet
TIMED_STEPS = 500  # between two looks at the clock


@dataclass(frozen=True)
class Frames:
    """Refreshes of the screen while it was watched, and how many of them found no new frame."""

    frames: int
    dropped: int

    @property
    def rate(self) -> float:
        return self.dropped / self.frames if self.frames else 0.0


class FrameProbe:
    """The probe for the time of a `with`; its work is calibrated when the start returns.

    :param rate_hz: refreshes per second.
    :param work_ms: CPU time of a frame on a core of its own.
    :param cores: where it may run.
    :param steps_per_ms: what an earlier probe found; the faster of the two counts, for a neighbour on the machine makes
        a core look slow, and nothing makes it look fast.
    :param timed: draw for `work_ms` of CPU time, whatever is done in it.
    """

    def __init__(
        self,
        rate_hz: float,
        work_ms: float,
        cores: Sequence[int],
        steps_per_ms: float = 0.0,
        *,
        timed: bool = False,
    ) -> None:
        self._arguments = (repr(rate_hz), repr(work_ms), repr(steps_per_ms), repr(float(timed)))
        self._cores = cores
        self.steps_per_ms = steps_per_ms
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        return () if self._process is None else (self._process.pid,)

    def __enter__(self) -> FrameProbe:
        self._process = start_helper("frames", self._arguments, self._cores)
        try:
            self.steps_per_ms = float(self._hear())
        except BaseException:
            self.close()
            raise
        return self

    def restart(self) -> None:
        """Count from zero."""
        self._say(b"restart\n")

    def read(self) -> Frames:
        """What was counted since the last `restart`."""
        self._say(b"read\n")
        frames, dropped = map(int, self._hear().split())
        return Frames(frames, dropped)

    def _say(self, words: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(words)
        self._process.stdin.flush()

    def _hear(self) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the frame probe ended by itself")
        return line

    def close(self) -> None:
        if self._process is not None:
            end_helper(self._process)
            self._process = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FrameCount:
    """The frames of a measurement, without those of windows that were done again; counts from now on."""

    def __init__(self, probe: FrameProbe) -> None:
        self.kept = Frames(0, 0)
        self._probe = probe
        probe.restart()

    def window_ended(self, keep: bool) -> None:
        seen = self._probe.read()
        if keep:
            self.kept = Frames(self.kept.frames + seen.frames, self.kept.dropped + seen.dropped)
        self._probe.restart()


def draw(steps: int) -> int:
    """The work of a frame: the same number of instructions every time."""
    value = 1
    for _ in range(steps):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF
    return value


def draw_for(work_ms: float) -> None:
    """As much work as fits into this CPU time."""
    end = time.thread_time() + work_ms / 1000
    while time.thread_time() < end:
        draw(TIMED_STEPS)


def steps_per_ms() -> float:
    """How much `draw` does in a millisecond of CPU time: the best of some rounds, as neighbours only slow it down."""
    best = float("inf")
    for _ in range(CALIBRATION_ROUNDS):
        start = time.thread_time()
        draw(CALIBRATION_STEPS)
        best = min(best, time.thread_time() - start)
        time.sleep(CALIBRATION_PAUSE_S)
    return CALIBRATION_STEPS / (best * 1000)


def refreshes_missed(start: float, end: float, period: float) -> int:
    """How many refreshes a frame that began at `start`, a refresh, let pass."""
    return max(0, -int(-(end - start) // period) - 1)


def main() -> None:
    rate_hz, work_ms, known, timed = map(float, begin_helper())
    speed = max(known, steps_per_ms())
    steps = round(speed * work_ms)
    print(speed, flush=True)
    period = 1 / rate_hz
    frames = dropped = 0
    start = time.monotonic()
    while True:
        if timed:
            draw_for(work_ms)
        else:
            draw(steps)
        missed = refreshes_missed(start, time.monotonic(), period)
        frames += 1 + missed
        dropped += missed
        start += (1 + missed) * period
        while (wait := start - time.monotonic()) > 0:
            if not select.select([0], [], [], wait)[0]:
                continue
            words = os.read(0, 4096).split()  # all that came: a buffered reader would hide a second word from select
            if not words:
                return
            for word in words:
                if word == b"restart":
                    frames = dropped = 0
                else:
                    print(frames, dropped, flush=True)
