"""The real runner around jobs that behave as they are told: the precision of a piece is what it does.

Run as a program: `python fake_runner.py FOLDER`.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from hetrl.device_bridge.runner import telemetry
from hetrl.device_bridge.runner.__main__ import main
from hetrl.device_bridge.runner.executor import Span
from hetrl.device_bridge.runner.job import Job

BUSY_MS = 2.0
CORES = sorted(os.sched_getaffinity(0))


class FakeExecutor:
    """Doubles its input."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._does = job.pieces[0].precision
        self._folder = folder
        self._outputs = job.outputs
        self.outputs: dict[str, np.ndarray] = {}
        self.timeline: list[Span] = []
        self._core = {"first_core": 0, "last_core": -1}.get(self._does)
        if self._core is not None:
            os.sched_setaffinity(0, [CORES[self._core]])
        self._held = np.ones(100 << 20, np.uint8) if self._does == "holds100mb" else None
        if self._does == "hangs_at_load":
            time.sleep(3600)
        if self._does == "unknown_operator":
            raise NotImplementedError("Einsum")
        if self._does == "too_large":
            np.zeros(64 << 30, np.uint8)[::4096] = 1

    def run(self, inputs) -> None:
        start = time.perf_counter()
        if self._core is not None and os.sched_getaffinity(0) != {CORES[self._core]}:
            raise RuntimeError("on the wrong core")
        if self._does == "anywhere" and sorted(os.sched_getaffinity(0)) != CORES:
            raise RuntimeError("not on all cores")
        getattr(self, f"_{self._does}", lambda: None)()
        factor = 3 if self._does == "wrong" else float("nan") if self._does == "nan" else 2
        self.outputs = {name: array * factor for name, array in zip(self._outputs, inputs.values(), strict=True)}
        busy_ms = BUSY_MS * (1.5 if self._does == "slower" else 1)
        while (time.perf_counter() - start) * 1000 < busy_ms:
            pass
        self.timeline = [Span(0, 0.0, (time.perf_counter() - start) * 1000, 0.5)]

    def close(self) -> None:
        (self._folder / f"closed-{self._does}").touch()

    def _once(self, what: str) -> bool:
        file = self._folder / what
        first = not file.exists()
        file.touch()
        return first

    def _anchor(self) -> None:
        time.sleep(0.045 if (self._folder / "slow").exists() else 0.015)  # as much on a busy machine

    def _hangs(self) -> None:
        time.sleep(3600)

    def _hangs_once(self) -> None:
        if self._once("hung"):
            time.sleep(3600)

    def _stops(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)  # no alarm ends a process that is stopped

    def _lowers(self) -> None:
        if self._once("lowered"):
            os.nice(1)  # as a cap does where the user may not take it back

    def _killed(self) -> None:
        print("I was told to go", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def _killed_for_memory(self) -> None:
        (self._folder / "killed").write_text("1")
        os.kill(os.getpid(), signal.SIGKILL)

    def _aborts(self) -> None:
        print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
        os.abort()

    def _segfaults(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def _raises(self) -> None:
        raise RuntimeError("the engine gave up")

    def _loses_connection(self) -> None:
        if self._once("lost"):
            os._exit(255)

    def _always_loses_connection(self) -> None:
        os._exit(255)

    def _prints(self) -> None:
        print("hello from the engine")
        os.write(1, b"and from its C code\n")

    def _breaks_protocol(self) -> None:
        """Write to where the real stdout was kept."""
        if self._once("broken"):
            for descriptor in range(3, 32):
                try:
                    if os.readlink(f"/proc/self/fd/{descriptor}").startswith("pipe:"):
                        os.write(descriptor, b'\xff\x00 not JSON\n{"id": 12345, "ok": {}}\n[]\n')
                except OSError:
                    continue


if __name__ == "__main__":
    counter = Path(sys.argv[1]) / "killed"
    if counter.exists() or (Path(sys.argv[1]) / "kernel_counts").exists():
        telemetry.processes_killed_for_memory = lambda: int(counter.read_text()) if counter.exists() else 0
    main(FakeExecutor)
