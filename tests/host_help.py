"""This computer as a device for tests: a cache of its own, short measurements, a runner with a defect."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import hetrl.device_bridge.host.device as host_device
import hetrl.device_bridge.host.opening as opening
from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.channel import LocalChannel
from hetrl.device_bridge.host.processors import BF16_FLAGS
from hetrl.device_bridge.runner.sampling import Sampling
from hetrl.device_bridge.runner.telemetry import cpu_flags
from hetrl.device_bridge.runner_client import Limits, RunnerClient
from hetrl.fidelity import MAX_OUTPUT_ERROR

HAS_BF16 = not BF16_FLAGS.isdisjoint(cpu_flags())
HOST_ERROR = 0.05 if HAS_BF16 else MAX_OUTPUT_ERROR  # of outputs: some plans use what the CPU has
ROOT = Path(__file__).parents[1]
FAULTY = ROOT / "tests" / "faulty_runner.py"
SHORT = Sampling(max_warmup_s=0.2, max_warmup_runs=2, max_s=0.1, min_repeats=3, window_s=0.05, foreign_share=1.0)
LIMITS = Limits(run_s=6.0, grace_s=2.0, backoff_s=0.05, memory_mb=60_000)


class FaultyChannel(LocalChannel):
    """Spawns `faulty_runner.py`; the file `fault` in the store says what is wrong with it."""

    pids: list[int] = []  # of all runners of this process

    def __init__(self, store: BlobStore) -> None:
        super().__init__(store)
        self._command = [sys.executable, str(FAULTY), str(store.folder)]

    def spawn(self) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        self.pids.append(process.pid)
        return process


@contextmanager
def quick_host(folder: Path, limits: Limits = LIMITS) -> Generator[pytest.MonkeyPatch, None, None]:
    """`--device host` measures for a tenth of a second, and keeps its files in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HETRL_CACHE", str(folder / "cache"))
        patch.setenv("XDG_DATA_HOME", str(folder / "data"))  # where no calibrated device is
        patch.setattr(host_device, "QUICK", SHORT)
        patch.setattr(host_device, "DUEL", SHORT)
        patch.setattr(host_device, "FRAMES_S", 0.3)
        patch.setattr(opening, "RunnerClient", partial(RunnerClient, limits=limits))
        yield patch


def break_runner(patch: pytest.MonkeyPatch, folder: Path, fault: str) -> None:
    """Runners of `host` get a defect; see `faulty_runner.py` for those that there are."""
    blobs = folder / "cache" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / "fault").write_text(fault)
    patch.setattr(opening, "LocalChannel", FaultyChannel)
