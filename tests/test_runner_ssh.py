"""The client and a runner at the other end of a real ssh connection."""

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.runner.arrays import pack_arrays
from hetrl.device_bridge.runner.protocol import Report, Request
from hetrl.device_bridge.runner_client import Limits, RunnerClient
from hetrl.device_bridge.ssh.channel import SshChannel
from hetrl.measurement import Failure
from tests.daemons.sshd import running_sshd
from tests.test_runner_client import PROGRAM, QUICK
from tests.test_runner_client import unchecked as job


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    with running_sshd(tmp_path_factory.mktemp("sshd")) as daemon:
        yield daemon


@pytest.fixture
def client(sshd, tmp_path):
    """The fake runner as the board's."""
    program = tmp_path / "fake.pyz"
    start = f"import runpy, sys; sys.path.insert(0, {str(PROGRAM.parents[1])!r})\n"
    program.write_text(f"{start}runpy.run_path({str(PROGRAM)!r}, run_name='__main__')\n")
    address = sshd.address(sys.executable)
    channel = SshChannel(address, folder=str(tmp_path / "work"), config=sshd.config, archive=program)
    with RunnerClient(channel, BlobStore(tmp_path / "store"), Limits(run_s=2.0)) as client:
        yield client


@pytest.fixture
def request_(tmp_path):
    blob = BlobStore(tmp_path / "store").put(pack_arrays([np.arange(4, dtype=np.float32)]), ".npz")
    return Request(inputs=blob, sampling=QUICK)


@pytest.mark.parametrize(
    ("does", "kind", "words"),
    [
        ("hangs", Failure.TIMEOUT, "took longer than 2 s"),
        ("killed", Failure.CRASHED, "I was told to go"),
        ("segfaults", Failure.CRASHED, "SIGSEGV"),
        ("raises", Failure.CRASHED, "the engine gave up"),
    ],
)
def test_what_happens_on_a_board_is_told_as_here(client, request_, does, kind, words):
    assert isinstance(client.measure(job(), request_), Report)
    failure = client.measure(job(does), request_)
    assert failure.kind is kind and words in failure.message, failure
    assert isinstance(client.measure(job(), request_), Report) and client.reconnects == 0


def test_a_connection_that_is_cut_in_the_middle_is_made_again(client, request_, sshd, tmp_path: Path):
    assert isinstance(client.measure(job(), request_), Report)

    def cut() -> None:
        sshd.kill()
        time.sleep(0.5)
        sshd.start()

    cutter = threading.Timer(0.7, cut)
    cutter.start()
    report = client.measure(job("hangs_once"), request_)
    cutter.join()
    assert isinstance(report, Report), report
    assert client.reconnects == 1 and client.notes[-1] == "the connection was lost once"
    assert isinstance(client.measure(job(), request_), Report)
