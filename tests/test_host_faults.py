"""Tuning on a real device whatever goes wrong there: each run ends complete, and keeps what it measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import msgspec
import pytest

import hetrl
import hetrl.agents.anchor
import hetrl.device_bridge.adb.opening as adb_opening
import hetrl.device_bridge.host.opening as opening
from experiments.kill import wait_for_lines, whole_lines
from hetrl.agents.trials import Trial, read_trials
from hetrl.cli.progress import Lines
from hetrl.device_bridge.adb.adb import Adb
from hetrl.device_bridge.adb.device import Protocol
from hetrl.device_bridge.ssh.channel import SshChannel
from hetrl.objective import Objective
from hetrl.progress import Progress
from hetrl.results import Result
from tests.daemons.adbd import running_adbd
from tests.daemons.disks import tiny_disk
from tests.daemons.processes import alive, wait_until
from tests.daemons.sshd import Sshd, running_sshd
from tests.host_help import HOST_ERROR, ROOT, FaultyChannel, break_runner, quick_host
from tests.tiny_models import save_tiny_cnn

BUDGET = 14
QUICK_HETRL = [sys.executable, str(ROOT / "tests" / "quick_hetrl.py")]


class Steps:
    """Does something once so many evaluations are over."""

    def __init__(self, at: int, action: Callable[[], object]) -> None:
        self._at, self._action = at, action
        self.kept: list[bytes] = []  # the log at that moment
        self.log: Path | None = None

    def start(self, total: int, label: str) -> None: ...

    def update(self, done: int, best_ms: float | None) -> None:
        if done == self._at and not self.kept:
            assert self.log is not None
            self.kept.append(self.log.read_bytes())
            self._action()

    def note(self, sentence: str) -> None: ...

    def stop(self) -> None: ...


@pytest.fixture
def patch(tmp_path: Path) -> Generator[pytest.MonkeyPatch, None, None]:
    save_tiny_cnn(tmp_path / "tiny.onnx")
    with quick_host(tmp_path) as patch:
        yield patch


def tuned(
    folder: Path, device: str = "host", progress: Progress | None = None, *, learning: bool = False
) -> tuple[Result, list[Trial]]:
    """A run that ended as it should, and its trials as they are on disk."""
    run = folder / "run"
    if isinstance(progress, Steps):
        progress.log = run / "trials.jsonl"
    about = str(folder / "tiny.onnx"), device
    lenient = Objective(max_output_error=HOST_ERROR)
    if learning:
        result = hetrl.tune(*about, objective=lenient, budget=BUDGET, out=run, progress=progress)
    else:  # the same driver, without the time that learning takes
        result = hetrl.search(*about, sampler="random", objective=lenient, budget=BUDGET, out=run, progress=progress)
    _, trials = read_trials(run / "trials.jsonl")
    assert not result.interrupted and result.evaluations == len(trials) == BUDGET
    assert len({trial.key for trial in trials}) == BUDGET
    assert (run / "plan.json").exists() and result.latency_ms > 0
    if isinstance(progress, Steps):
        assert progress.kept and (run / "trials.jsonl").read_bytes().startswith(progress.kept[0])
    return result, trials


def failures(trials: list[Trial]) -> dict[int, str]:
    """Error by number of the evaluation."""
    return {trial.n: trial.error for trial in trials if trial.error is not None}


@pytest.mark.parametrize(
    ("fault", "words", "learning"),
    [
        ("dies 5", "crashed: the runner was killed", True),
        ("hangs 5", "timeout: an inference took longer than 6 s", False),
    ],
)
def test_a_runner_that_dies_or_hangs_costs_one_evaluation(
    patch: pytest.MonkeyPatch, tmp_path: Path, fault: str, words: str, learning: bool
) -> None:
    break_runner(patch, tmp_path, fault)
    FaultyChannel.pids.clear()
    result, trials = tuned(tmp_path, learning=learning)
    [(number, error)] = failures(trials).items()
    assert 0 < number < BUDGET - 1 and error.startswith(words)
    assert result.notes[-1] == "the runner was replaced once"
    assert len(FaultyChannel.pids) == 2 and not any(map(alive, FaultyChannel.pids))


@pytest.mark.parametrize(("fault", "kind"), [("exhausts 0", "out_of_memory"), ("errs 0", "wrong_output")])
def test_plans_that_do_not_work_fail_and_others_do_not(
    patch: pytest.MonkeyPatch, tmp_path: Path, fault: str, kind: str
) -> None:
    """Whatever runs on ncnn alone needs more memory than there is, or calculates something else."""
    break_runner(patch, tmp_path, fault)
    result, trials = tuned(tmp_path)
    failed = failures(trials)
    assert failed and len(failed) < BUDGET / 2 and all(error.startswith(f"{kind}: ") for error in failed.values())
    rows = {row.policy: row for row in result.rows}
    assert (rows["ncnn_default"].error or "").startswith(f"{kind}: ")
    assert rows["onnxruntime_default"].error is None and set(result.plan.processors) != {"cpu/ncnn/fp32"}


def test_garbage_on_stdout_is_skipped_and_mentioned(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    break_runner(patch, tmp_path, "babbles 5")
    result, trials = tuned(tmp_path)
    assert not failures(trials)
    assert any("not JSON" in note for note in result.notes)


def test_a_device_that_gets_three_times_slower_is_noticed_and_said(
    patch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_runner(patch, tmp_path, "slows 7")
    patch.setattr(hetrl.agents.anchor, "EVERY", 5)
    result, trials = tuned(tmp_path, progress=Lines())
    assert not failures(trials)
    [sentence] = [note for note in result.notes if "slower" in note]
    assert "the device has become slower" in sentence and "cannot be compared" in sentence
    assert sentence in capsys.readouterr().err
    assert sentence in json.loads((tmp_path / "run" / "result.json").read_text())["notes"]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Generator[Sshd, None, None]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as daemon:
        yield daemon


@pytest.fixture
def address(patch: pytest.MonkeyPatch, sshd: Sshd) -> str:
    patch.setenv("HETRL_SSH_CONFIG", str(sshd.config))
    return f"ssh://{sshd.user}@127.0.0.1:{sshd.port}?python={sys.executable}"


def test_sshd_is_killed_and_restarted(address: str, sshd: Sshd, tmp_path: Path) -> None:
    def restart() -> None:
        sshd.kill()
        time.sleep(0.5)
        sshd.start()

    breaking = threading.Timer(0.1, restart)  # during the next measurement, or just before
    result, trials = tuned(tmp_path, address, Steps(5, breaking.start))
    breaking.join()
    assert not failures(trials)
    assert any("once" in note and ("lost" in note or "replaced" in note) for note in result.notes)


def test_the_disk_is_full(address: str, patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", "2m") as disk:
        patch.setattr(opening, "SshChannel", partial(SshChannel, folder=str(disk)))
        result, trials = tuned(tmp_path, address, Steps(5, lambda: fill(disk)))
    failed = failures(trials)
    assert failed and min(failed) >= 5
    assert all(error.startswith("no_space: ") and "makes room" in error for error in failed.values())
    assert result.latency_ms > 0


def fill(disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_adbd_is_killed_and_restarted(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "adbd").mkdir()
    with running_adbd(tmp_path / "adbd") as adbd:
        patch.setenv("PATH", f"{adbd.adb.parent}:{os.environ['PATH']}")
        patch.setattr(adb_opening, "Adb", lambda serial: Adb(serial, folder=str(tmp_path / "phone")))
        patch.setattr(adb_opening, "Protocol", lambda app: Protocol(runs=1, pause_s=0.0, app=app))

        def restart() -> None:
            adbd.kill()
            time.sleep(0.5)
            adbd.start()

        breaking = threading.Timer(0.05, restart)
        result, trials = tuned(tmp_path, f"adb:{adbd.serial}?benchncnn={adbd.benchncnn}", Steps(5, breaking.start))
        breaking.join()
    assert not any(error.startswith("lost") for error in failures(trials).values())
    assert any("was lost and came back" in note for note in result.notes)


class TestProcesses:
    """`hetrl train --device host` as a process of its own."""

    def start(self, folder: Path, *where: str, fault: str = "-") -> subprocess.Popen[bytes]:
        command = [*QUICK_HETRL, str(folder), fault, "train", "--device", "host", "--model", str(folder / "tiny.onnx")]
        command += ["--budget", str(BUDGET), "--quiet", "--json", *where]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_killed_and_resumed_it_loses_nothing_and_repeats_nothing(self, tmp_path: Path) -> None:
        save_tiny_cnn(tmp_path / "tiny.onnx")
        log = tmp_path / "run" / "trials.jsonl"
        process = self.start(tmp_path, "--out", str(tmp_path / "run"))
        wait_for_lines(process, log, 7)
        runners = descendants(process.pid)
        process.kill()
        process.communicate()
        before = whole_lines(log)
        assert runners and before.count(b"\n") >= 7
        wait_until(lambda: not any(map(alive, runners)), "the end of its runners")
        process = self.start(tmp_path, "--resume", str(tmp_path / "run"))
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        assert log.read_bytes().startswith(before)
        _, trials = read_trials(log)
        assert len({trial.key for trial in trials}) == len(trials) == BUDGET
        assert json.loads(out)["evaluations"] == BUDGET

    def test_ctrl_c_in_the_middle_of_a_measurement_keeps_the_result(self, tmp_path: Path) -> None:
        save_tiny_cnn(tmp_path / "tiny.onnx")
        run = tmp_path / "run"
        process = self.start(tmp_path, "--out", str(run), fault="slows 1000")
        wait_for_lines(process, run / "trials.jsonl", 7)
        time.sleep(0.05)
        runners = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err.decode()
        result = msgspec.json.decode((run / "result.json").read_bytes(), type=Result)
        _, trials = read_trials(run / "trials.jsonl")
        assert result.interrupted and 6 <= result.evaluations == len(trials) < BUDGET
        assert json.loads(out)["latency_ms"] == result.latency_ms and (run / "plan.json").exists()
        wait_until(lambda: not any(map(alive, runners)), "the end of its runners")


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that these did."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            found += [child, *descendants(child)]
    return found
