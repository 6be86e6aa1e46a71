"""Watches the frame probe with and without a busy neighbour on its core; prints drop rates as JSON.

Other programs on the machine make a core slower (they share its execution units, or its time): only a moment in which
the drawn frames cost what they should counts. As a session of its own this also asks the kernel to prefer it as a whole
(autogroup, see sched(7)); where this user may not, quiet moments have to do.
"""

import contextlib
import json
import os
import time
from pathlib import Path

from hetrl.device_bridge.runner.competitors import Competitors
from hetrl.device_bridge.runner.foreign import process_ms
from hetrl.device_bridge.runner.frames import FrameProbe, Frames
from hetrl.device_bridge.runner.telemetry import all_cores

WATCHED_S = 1.0
TRIES = 20
WORK_MS = 9.0
TOLERANCE = 0.1


def watch(probe: FrameProbe) -> tuple[Frames, float]:
    """The frames of a moment, and the CPU time (ms) of each that was drawn."""
    (pid,) = probe.pids
    probe.restart()
    before = process_ms(Path("/proc"), pid)
    time.sleep(WATCHED_S)
    used, seen = process_ms(Path("/proc"), pid) - before, probe.read()
    return seen, used / (seen.frames - seen.dropped)


def main() -> None:
    with contextlib.suppress(OSError):
        os.setsid()
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("-19")
    core = all_cores()[-1]
    speed = 0.0
    moments = []
    while len(moments) < TRIES and not (moments and min(moments)[0] <= TOLERANCE):
        with FrameProbe(60, WORK_MS, (core,), speed) as probe:
            speed = probe.steps_per_ms
            alone, work_ms = watch(probe)
            with Competitors(1, (core,)):
                beside, work_beside_ms = watch(probe)
        off = max(abs(ms / WORK_MS - 1) for ms in (work_ms, work_beside_ms))
        moments.append((off, alone.rate, beside.rate, alone.frames, work_ms))
    _, alone_rate, beside_rate, frames, work_ms = min(moments)
    seen = {"alone": alone_rate, "beside": beside_rate, "frames": frames, "work_ms": work_ms, "tries": len(moments)}
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
