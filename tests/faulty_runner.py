"""The real runner with its real engines, and one defect.

Run as a program: `python faulty_runner.py FOLDER`. The file FOLDER/fault says what is wrong, and with which of the
jobs that this and earlier runners loaded: `WHAT NUMBER`, the first job being number 0. `exhausts` and `errs` happen to
all jobs of ncnn alone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from hetrl.device_bridge.runner.__main__ import load_executor, main
from hetrl.device_bridge.runner.arrays import Array
from hetrl.device_bridge.runner.executor import Span
from hetrl.device_bridge.runner.job import Job
from hetrl.device_bridge.runner.server import Executable

RUN_MS = 4.0  # what the runner that gets slower sleeps in each run; three times that in the end


class Faulty:
    """An executor and its defect."""

    def __init__(self, job: Job, folder: Path) -> None:
        what, first = (folder / "fault").read_text().split()
        number = _count(folder / "loads")
        self._struck = number == int(first)
        self._alone = {piece.engine for piece in job.pieces} == {"ncnn"}
        self._folder, self._what, self._first = folder, what, int(first)
        self._inner: Executable = load_executor(job, folder)
        if what == "exhausts" and self._alone:
            np.ones(1 << 37, np.uint8)

    @property
    def outputs(self) -> Mapping[str, Array]:
        return self._outputs

    @property
    def timeline(self) -> Sequence[Span]:
        return self._inner.timeline

    def run(self, inputs: Mapping[str, Array]) -> None:
        self._inner.run(inputs)
        self._outputs = dict(self._inner.outputs)
        getattr(self, f"_{self._what}")()

    def close(self) -> None:
        self._inner.close()

    def _dies(self) -> None:
        if self._struck:
            os.kill(os.getpid(), signal.SIGKILL)

    def _hangs(self) -> None:
        if self._struck:
            time.sleep(3600)

    def _exhausts(self) -> None:
        pass

    def _babbles(self) -> None:
        """Write what is no answer to where the real stdout was kept."""
        if self._struck:
            for descriptor in range(3, 32):
                try:
                    if os.readlink(f"/proc/self/fd/{descriptor}").startswith("pipe:"):
                        os.write(descriptor, b'\xff\x00 not JSON\n{"id": 12345, "ok": {}}\n[]\n')
                except OSError:
                    continue

    def _errs(self) -> None:
        """What ncnn alone calculates is wrong."""
        if self._alone:
            self._outputs = {name: array * 1.5 for name, array in self._outputs.items()}

    def _slows(self) -> None:
        slow = len((self._folder / "loads").read_bytes()) > self._first
        time.sleep(RUN_MS / 1000 * (3 if slow else 1))


def _count(file: Path) -> int:
    """How often this was asked before, by this process and those before it."""
    with file.open("ab") as stream:
        stream.write(b".")
        return stream.tell() - 1


if __name__ == "__main__":
    main(Faulty)
