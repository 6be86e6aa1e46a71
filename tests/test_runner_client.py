"""The client against real runner processes that do every wrong thing."""

import contextlib
import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hetrl.device_bridge.blobs import NAME_DIGITS, BlobStore
from hetrl.device_bridge.channel import Channel, ChannelLost
from hetrl.device_bridge.drift import Verdict, judge_drift
from hetrl.device_bridge.runner.arrays import pack_arrays
from hetrl.device_bridge.runner.job import Job, Piece, Port, TensorInfo
from hetrl.device_bridge.runner.priorities import Cap
from hetrl.device_bridge.runner.protocol import Hello, Report, Request, Screen
from hetrl.device_bridge.runner.sampling import Sampling
from hetrl.device_bridge.runner.significance import significantly_faster
from hetrl.device_bridge.runner_client import Limits, RunnerClient
from hetrl.measurement import Failure, MeasurementError

QUICK = Sampling(max_s=0.3, window_s=0.05, max_warmup_s=0.1, max_repeats=30, foreign_share=1.0)
PROGRAM = Path(__file__).with_name("fake_runner.py")


class FakeChannel(Channel):
    """Spawns the fake runner; loses the connection as often as it is told."""

    def __init__(self, store: BlobStore, program: Path = PROGRAM) -> None:
        self._command = [sys.executable, str(program), str(store.folder)]
        self.pids: list[int] = []
        self.losses = 0

    def push(self, names, store) -> None:
        if self.losses:
            self.losses -= 1
            raise ChannelLost("no route to the board", "ping it")

    def spawn(self):
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[1])},
        )
        self.pids.append(process.pid)
        return process


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "blobs")


X = np.arange(4, dtype=np.float32)
REFERENCE = hashlib.sha256(pack_arrays([2 * X])).hexdigest()[:NAME_DIGITS] + ".npz"


@pytest.fixture
def channel(store):
    return FakeChannel(store)


@pytest.fixture
def client(channel, store):
    limits = Limits(run_s=1.5, load_s=1.5, grace_s=1.0, backoff_s=0.05)
    with RunnerClient(channel, store, limits) as client:
        yield client
    for pid in channel.pids:
        with pytest.raises(ProcessLookupError):  # no process is left, and no zombie
            os.kill(pid, 0)


def job(does: str = "works") -> Job:
    tensors = (TensorInfo("x", (4,), "float32"), TensorInfo("y", (4,), "float32"))
    piece = Piece(0, f"cpu/fake/{does}", (), (0,), (Port("x", "x"),), (Port("y", "y"),))
    return Job(tensors, ("x",), ("y",), (piece,), REFERENCE)


def unchecked(does: str = "works") -> Job:
    """The same, whose outputs are compared with nothing."""
    return dataclasses.replace(job(does), reference=None)


@pytest.fixture
def request_(store):
    assert store.put(pack_arrays([2 * X]), ".npz") == REFERENCE
    return Request(inputs=store.put(pack_arrays([X]), ".npz"), max_output_error=1e-3, sampling=QUICK)


def works(client: RunnerClient, request: Request) -> bool:
    return isinstance(client.measure(job(), request), Report)


def test_a_report_says_what_was_seen(client, request_):
    report = client.measure(job(), request_)
    assert isinstance(report, Report)
    assert 2.0 <= report.latency_ms == np.median(report.samples_ms)
    assert report.interval_ms[0] <= report.latency_ms <= report.interval_ms[1]
    assert report.output_error == 0 and report.frames is None and report.warmup_runs >= 2
    assert report.peak_memory_mb > 5 and report.load_ms >= 0
    assert report.timeline[0].piece == 0 and report.timeline[0].end_ms == pytest.approx(report.latency_ms, rel=0.2)
    assert client.restarts == client.garbage_lines == client.reconnects == 0 and client.notes == ()


def test_hello_describes_the_machine(client):
    hello = client.hello()
    assert isinstance(hello, Hello) and set(hello.cores) == os.sched_getaffinity(0)
    assert hello.memory_mb > 100 and hello.cpu_model and {e.name for e in hello.engines} >= {"ncnn", "openvino"}
    assert all((engine.version is None) == bool(engine.reason) for engine in hello.engines)
    assert {cap.kind for cap in hello.caps} == {"duty", "cores", "nice", "idle", "quota"}
    assert client.hello() is hello


@pytest.mark.parametrize(
    ("does", "kind", "words"),
    [
        ("hangs", Failure.TIMEOUT, "inference took longer than 1.5 s"),
        ("hangs_at_load", Failure.TIMEOUT, "loading took longer than 1.5 s"),
        ("killed", Failure.CRASHED, "I was told to go"),
        ("segfaults", Failure.CRASHED, "SIGSEGV"),
        ("aborts", Failure.OUT_OF_MEMORY, "bad_alloc"),
        ("raises", Failure.CRASHED, "the engine gave up"),
        ("unknown_operator", Failure.UNSUPPORTED, "Einsum"),
        ("wrong", Failure.WRONG_OUTPUT, "0.5 of its largest value"),
        ("nan", Failure.WRONG_OUTPUT, "inf"),
        ("always_loses_connection", Failure.LOST, "the connection to the runner broke"),
    ],
)
def test_what_a_job_does_is_a_failed_measurement_and_the_next_one_works(client, request_, does, kind, words):
    assert works(client, request_)
    failure = client.measure(job(does), request_)
    assert isinstance(failure, MeasurementError) and failure.kind is kind and words in failure.message, failure
    assert failure.output_error == (0.5 if does == "wrong" else None)
    assert works(client, request_)


def test_a_runner_that_does_not_even_see_its_alarm_is_killed(channel, store, request_):
    limits = Limits(run_s=0.2, grace_s=0.5)
    with RunnerClient(channel, store, limits) as client:
        assert works(client, request_)
        client._running = lambda running=client._running: _impatient(running())
        failure = client.measure(job("stops"), request_)
        assert failure.kind is Failure.TIMEOUT and "did not answer" in failure.message
        assert client.restarts == 1 and works(client, request_)
    assert not any(_alive(pid) for pid in channel.pids)


def _impatient(runner):
    """The same runner with a shorter watchdog: the real one waits for the slowest measurement that may be right."""
    call = type(runner).call
    runner.call = lambda do, fields, timeout_s: call(runner, do, fields, min(timeout_s, 2.0))
    return runner


def test_too_much_memory_is_said(channel, store, request_):
    with RunnerClient(channel, store, Limits(memory_mb=4096)) as client:
        failure = client.measure(job("too_large"), request_)
        assert failure.kind is Failure.OUT_OF_MEMORY
        assert works(client, request_)


def test_a_kill_by_the_kernel_for_memory_is_told_from_others(client, request_, store):
    (store.folder / "kernel_counts").touch()
    failure = client.measure(job("killed_for_memory"), request_)
    assert failure.kind is Failure.OUT_OF_MEMORY and "the kernel killed the runner" in failure.message
    assert client.measure(job("killed"), request_).kind is Failure.CRASHED
    assert works(client, request_) and client.restarts == 2


def test_a_kill_from_outside_in_the_middle_of_a_run(client, request_, channel):
    assert works(client, request_)
    killer = threading.Timer(0.3, lambda: os.kill(channel.pids[-1], signal.SIGKILL))
    killer.start()
    failure = client.measure(job("hangs"), request_)
    killer.join()
    assert failure.kind is Failure.CRASHED and "killed" in failure.message
    assert works(client, request_)


def test_a_kill_between_measurements_is_no_failure(client, request_, channel):
    assert works(client, request_)
    os.kill(channel.pids[-1], signal.SIGKILL)
    time.sleep(0.1)
    assert works(client, request_) and client.restarts == 1


def test_garbage_on_stdout_is_skipped_counted_and_mentioned(client, request_):
    assert isinstance(client.measure(job("prints"), request_), Report)
    assert client.garbage_lines == 0  # what engines print goes to stderr
    assert isinstance(client.measure(job("breaks_protocol"), request_), Report)
    assert client.garbage_lines == 3 and "not JSON" in client.notes[0]
    assert client.restarts == 0


def test_an_answer_without_sense_is_a_failure(store, request_, tmp_path):
    program = tmp_path / "liar.py"
    program.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        '    print(json.dumps({"id": json.loads(line)["id"], "ok": {"latency_ms": "fast"}}), flush=True)\n'
    )
    with RunnerClient(FakeChannel(store, program), store) as client:
        failure = client.measure(job(), request_)
        assert failure.kind is Failure.CRASHED and "makes no sense" in failure.message


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)", "print('no')"])
def test_a_runner_that_never_starts_is_a_failure(store, request_, tmp_path, program):
    file = tmp_path / "broken.py"
    file.write_text(program)
    with RunnerClient(FakeChannel(store, file), store) as client:
        assert client.measure(job(), request_).kind is Failure.CRASHED
        assert client.hello().kind is Failure.CRASHED


def test_a_broken_connection_is_made_again_and_counted(client, request_, channel):
    channel.losses = 2
    assert works(client, request_) and client.reconnects == 2
    assert isinstance(client.measure(job("loses_connection"), request_), Report) and client.reconnects == 3
    channel.losses = 3
    failure = client.measure(job(), request_)
    assert failure.kind is Failure.LOST and "no route to the board; ping it" in failure.message
    assert "the connection was lost 5 times" in client.notes[-1] and works(client, request_)


def test_the_jobs_used_last_stay_loaded(channel, store, request_):
    with RunnerClient(channel, store, Limits(loaded=2)) as client:
        for does in ("a", "b", "a", "c"):
            assert isinstance(client.measure(job(does), request_), Report)
        assert not (store.folder / "closed-a").exists() and (store.folder / "closed-b").exists()
        assert len(client.compare([job("a"), job("b"), job("c")], request_)) == 3


def test_each_job_runs_on_the_cores_where_it_was_loaded(client, request_):
    jobs = [job("first_core"), job("last_core"), job("anywhere")]
    for one in [*jobs, *jobs]:
        report = client.measure(one, request_)
        assert isinstance(report, Report), report
    assert len(client.compare(jobs, request_)) == 3 and client.restarts == 0


def test_memory_is_the_jobs_own(client, request_):
    small = client.measure(job(), request_)
    large = client.measure(job("holds100mb"), request_)
    again = client.measure(job(), request_)
    assert large.peak_memory_mb - small.peak_memory_mb == pytest.approx(100, abs=10)
    assert again.peak_memory_mb == pytest.approx(small.peak_memory_mb, abs=10)


def test_compared_jobs_are_sampled_in_the_same_rounds(client, request_):
    sampling = Sampling(max_s=1.0, min_repeats=20, max_repeats=40, foreign_share=1.0)
    request = Request(inputs=request_.inputs, sampling=sampling)
    slower, faster = client.compare([job("slower"), job()], request)
    assert len(slower.samples_ms) == len(faster.samples_ms) >= 20
    assert significantly_faster(faster.samples_ms, slower.samples_ms)
    assert not significantly_faster(slower.samples_ms, faster.samples_ms)
    assert client.compare([job(), job("wrong")], request_).kind is Failure.WRONG_OUTPUT


def test_a_device_that_gets_three_times_slower_is_noticed(client, request_, store):
    first = client.measure(job("anchor"), request_).latency_ms
    assert judge_drift(first, first).verdict is Verdict.STEADY
    (store.folder / "slow").touch()
    now = client.measure(job("anchor"), request_).latency_ms
    suspected = judge_drift(first, now)
    assert suspected.verdict is Verdict.SUSPECTED and not suspected.slower
    drift = judge_drift(first, now, client.measure(job("anchor"), request_).latency_ms)
    assert drift.slower and drift.ratio == pytest.approx(3, rel=0.4) and "slower" in drift.sentence
    assert judge_drift(first, now, first).verdict is Verdict.STEADY  # one sample was chance


@pytest.mark.parametrize("cap", [Cap(), Cap(nice=10), Cap(idle=True)])
def test_measuring_beside_a_screen_and_competitors(channel, store, request_, cap):
    sampling = Sampling(min_s=0.5, max_s=0.5, max_warmup_s=0.2, foreign_share=1.0, max_repeats=10_000)
    request = Request(
        inputs=request_.inputs, sampling=sampling, competitors=1, screen=Screen(rate_hz=100, work_ms=1), cap=cap
    )
    with RunnerClient(channel, store, Limits(run_s=60)) as client:  # whoever is idle may have to wait
        report = client.measure(job(), request)
    assert isinstance(report, Report), report
    assert report.frames.frames >= 0.8 * sum(report.samples_ms) / 10 and report.frames.dropped <= report.frames.frames
    assert client.restarts == 0


def test_a_runner_that_keeps_a_lower_priority_measures_no_more(client, request_, channel):
    assert isinstance(client.measure(job("lowers"), request_), Report)
    assert works(client, request_) and len(channel.pids) == 2 and client.restarts == 0


def test_hostile_names_never_leave_the_blob_folder(client, store, request_):
    for name in ("../secret", "/etc/passwd", "", ".", "a\nb", "a;b", "$(reboot)"):
        failure = client.measure(job(), Request(inputs=name, sampling=QUICK))
        assert isinstance(failure, MeasurementError) and "is no name of a blob" in failure.message


def test_an_interrupt_ends_the_runner(client, request_, channel):
    assert works(client, request_)
    timer = threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        client.measure(job("hangs"), request_)
    timer.join()
    assert not _alive(channel.pids[-1])
    assert works(client, request_)


def _alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
