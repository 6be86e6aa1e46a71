"""The runner's process and its parts: how it ends, what it shows, what it can cap."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hetrl.device_bridge.runner import foreign, telemetry
from hetrl.device_bridge.runner.arrays import output_error, pack_arrays, unpack_arrays
from hetrl.device_bridge.runner.job import job_to_json
from hetrl.device_bridge.runner.priorities import Cap, capped, supported_caps
from hetrl.device_bridge.runner.quota import Unavailable, quota_group
from hetrl.device_bridge.runner_archive import build_runner_archive
from tests.test_runner_client import unchecked as job

ROOT = Path(__file__).parents[1]
FAKE = [sys.executable, str(ROOT / "tests" / "fake_runner.py")]
IN_REPOSITORY = {**os.environ, "PYTHONPATH": str(ROOT)}


def start(command, **more) -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, **{**pipes, "env": IN_REPOSITORY, "text": True, **more})


def ask(process, **request):
    process.stdin.write(json.dumps({"id": 7, **request}) + "\n")
    process.stdin.flush()


def hear(process):
    answer = json.loads(process.stdout.readline())
    assert answer["id"] == 7
    return answer


def busy(process, folder: Path, competitors: int = 0) -> None:
    """Let it hang in an inference."""
    (folder / "x.npz").write_bytes(pack_arrays([np.zeros(4, np.float32)]))
    ask(process, do="load", job=job_to_json(job("hangs")), limit_s=60, memory_mb=None)
    assert hear(process)["ok"]["handle"] == 0
    request = {"inputs": "x.npz", "sampling": {}, "cap": {}, "competitors": competitors}
    ask(process, do="measure", handle=0, request=request, run_limit_s=600)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in tasks for child in file.read_text().split()]


def gone(pid: int, within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True  # whoever adopted it has to bury it
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("hanging", [False, True])
def test_a_runner_ends_when_its_stdin_does(tmp_path, hanging):
    with start([*FAKE, str(tmp_path)]) as runner:
        if hanging:
            busy(runner, tmp_path)
        runner.stdin.close()
        assert runner.wait(5) == 0


def test_a_runner_ends_when_its_parent_does(tmp_path):
    """Though its stdin stays open."""
    parent = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    with start([sys.executable, "-c", parent, *FAKE, str(tmp_path)]) as process:
        pid = int(process.stdout.readline())
        time.sleep(0.5)
        assert not gone(pid, 0.1)
        process.kill()
        assert gone(pid)


@pytest.mark.parametrize("how", ["killed", "stdin"])
def test_competitors_end_with_the_runner(tmp_path, how):
    with start([*FAKE, str(tmp_path)]) as runner:
        busy(runner, tmp_path, competitors=2)
        until = time.monotonic() + 10
        while len(helpers := children(runner.pid)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(helpers) == 2
        time.sleep(0.3)
        if how == "killed":
            os.kill(runner.pid, signal.SIGKILL)
        else:
            runner.stdin.close()
        assert all(map(gone, helpers))


def test_a_runner_from_an_archive_answers_and_starts_its_helpers(tmp_path):
    archive = build_runner_archive(tmp_path / "runner")
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(archive.relative_to(tmp_path)), "."]
    with start(command, cwd=tmp_path, env=elsewhere) as runner:
        ask(runner, do="hello", engines=False)
        assert hear(runner)["ok"]["pid"] == runner.pid
        ask(runner, do="bye")
        assert hear(runner)["ok"] == {} and runner.wait(5) == 0
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from hetrl.device_bridge.runner.frames import FrameProbe\n"
        "with FrameProbe(100, 1.0, (0,)) as probe: probe.restart(); print(probe.read().dropped)\n"
    )
    command = [sys.executable, "-S", "-c", code, str(archive.relative_to(tmp_path))]
    done = subprocess.run(command, cwd=tmp_path, env=elsewhere, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 0


def test_unknown_requests_and_handles_are_answered(tmp_path):
    with start([*FAKE, str(tmp_path)]) as runner:
        for request in ({"do": "dance"}, {"do": "unload", "handle": 3}, {"do": "load"}):
            ask(runner, **request)
            assert hear(runner)["error"]["kind"] in ("crashed", "unsupported")
        ask(runner, do="bye")
        runner.wait(5)


def test_arrays_come_back_by_position(tmp_path):
    arrays = [np.arange(3, dtype=np.float16), np.ones((2, 2), np.int64)]
    (tmp_path / "a.npz").write_bytes(pack_arrays(arrays))
    back = unpack_arrays(tmp_path / "a.npz", ["file", "../b"])
    assert list(back) == ["file", "../b"] and all(map(np.array_equal, back.values(), arrays))
    assert back["file"].dtype == np.float16 and pack_arrays(arrays) == pack_arrays(arrays)
    with pytest.raises(ValueError, match="2 arrays for 1"):
        unpack_arrays(tmp_path / "a.npz", ["x"])


def test_output_error_is_relative_to_the_largest_value():
    reference = {"y": np.array([4.0, -8.0])}
    assert output_error({"y": np.array([4.0, -7.0])}, reference) == 1 / 8
    assert output_error(reference, reference) == 0
    for wrong in ({}, {"y": np.zeros(3)}, {"y": np.array([np.nan, -8.0])}):
        assert output_error(wrong, reference) == float("inf")
    assert output_error({"y": np.array([0.0, 1e-9])}, {"y": np.zeros(2)}) == float("inf")
    both = {"y": np.array([4.0, -8.0]), "z": np.array([1.0])}
    assert output_error({"y": both["y"], "z": np.array([1.5])}, both) == 0.5
    assert output_error({"y": np.float32([65504])}, {"y": np.float16([65504])}) == 0


def spin(seconds: float) -> float:
    """CPU time that a busy loop got, as a share of one core."""
    start, used = time.monotonic(), time.process_time()
    while time.monotonic() - start < seconds:
        pass
    return (time.process_time() - used) / (time.monotonic() - start)


@pytest.mark.parametrize(
    ("cap", "before", "inside"),
    [
        ("Cap(nice=5)", "os.getpriority(os.PRIO_PROCESS, 0)", "before + 5"),
        ("Cap(idle=True)", "os.sched_getscheduler(0)", "os.SCHED_IDLE"),
    ],
)
def test_a_priority_holds_for_the_block(cap, before, inside):
    """In a process of its own: a user without privileges does not get the priority back."""
    code = (
        "import os\n"
        "from hetrl.device_bridge.runner.priorities import Cap, capped, present_priority\n"
        f"before, both = {before}, present_priority()\n"
        f"with capped({cap}): assert {before} == {inside} and present_priority() != both\n"
        "assert present_priority() == both or os.geteuid() != 0\n"
    )
    subprocess.run([sys.executable, "-c", code], env=IN_REPOSITORY, check=True)


def test_impossible_caps_are_refused():
    for wrong in ({"nice": 20}, {"nice": -1}, {"quota_cpus": 0.0}):
        with pytest.raises(ValueError):
            Cap(**wrong)


def test_a_quota_holds_or_its_reason_is_given():
    support = {cap.kind: cap for cap in supported_caps()}["quota"]
    if support.possible:
        assert quota_group().parent.is_dir()
        with capped(Cap(quota_cpus=0.3)):
            assert spin(1.0) < 0.45
        assert not list(quota_group().parent.glob(f"hetrl-runner-{os.getpid()}"))
    else:
        with pytest.raises(Unavailable, match=support.reason[:20]), capped(Cap(quota_cpus=0.3)):
            pass


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_quota_groups_are_found_in_both_versions(tmp_path):
    v1 = write(
        tmp_path / "v1",
        {
            "proc/self/cgroup": "2:cpuset:/\n1:cpu,cpuacct:/mine\n0::/\n",
            "proc/self/mountinfo": f"32 31 0:29 / {tmp_path}/v1/sys rw - cgroup cgroup rw,cpu,cpuacct\n",
            "sys/mine/cgroup.procs": "",
        },
    )
    assert (quota_group(v1 / "proc").version, quota_group(v1 / "proc").parent) == (1, v1 / "sys/mine")
    v2 = write(
        tmp_path / "v2",
        {
            "proc/self/cgroup": "0::/user/me\n",
            "proc/self/mountinfo": f"32 31 0:29 / {tmp_path}/v2/sys rw shared:4 - cgroup2 cgroup2 rw\n",
            "sys/cgroup.subtree_control": "memory\n",
            "sys/user/cgroup.subtree_control": "cpu memory\n",
            "sys/user/cgroup.procs": "",
            "sys/user/me/cgroup.subtree_control": "",
            "sys/user/me/cgroup.procs": "",
        },
    )
    group = quota_group(v2 / "proc")
    assert (group.version, group.parent, group.home) == (2, v2 / "sys/user", v2 / "sys/user/me")
    (v2 / "sys/user/cgroup.subtree_control").write_text("memory")
    with pytest.raises(Unavailable, match="delegated"):
        quota_group(v2 / "proc")
    with pytest.raises(Unavailable, match="control groups"):
        quota_group(tmp_path)


def test_foreign_load_is_what_others_took():
    """A busy process is foreign unless it is a helper."""
    cores = telemetry.all_cores()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            time.sleep(0.2)
            all_of_it, without = foreign.watch_foreign((), cores), foreign.watch_foreign((other.pid,), cores)
            before = all_of_it.total_ms() - without.total_ms()
            started = all_of_it.total_ms()
            took = foreign.process_ms(Path("/proc"), other.pid)
            spin(0.5)
            took = foreign.process_ms(Path("/proc"), other.pid) - took
            assert all_of_it.total_ms() - started > 0.6 * took > 50
            assert all_of_it.total_ms() - without.total_ms() - before == pytest.approx(took, abs=30)
        finally:
            other.kill()


def test_foreign_load_counts_the_busy_columns_of_the_given_cores(tmp_path):
    cpu0, cpu1 = "cpu0 100 10 1 5000 7 2 3 4 50 0", "cpu1 1000 0 0 0 0 0 0 0 0 0"
    write(tmp_path, {"stat": f"cpu 1100 10 1 5000 7 2 3 4 50 0\n{cpu0}\n{cpu1}\nintr 1\n"})
    tick_ms = 1000 / os.sysconf("SC_CLK_TCK")
    assert foreign.busy_ms(tmp_path, [0]) == 120 * tick_ms
    assert foreign.busy_ms(tmp_path, [0, 1]) == 1120 * tick_ms
    assert foreign.watch_foreign((), [5], tmp_path).total_ms() == 0  # the kernel does not tell of such a core
    write(tmp_path, {"12/stat": "12 (a) b) S 1 1 1 0 -1 0 0 0 0 0 30 12 0 0 20 0 1 0 100 0 0\n"})
    assert foreign.process_ms(tmp_path, 12) == 42 * tick_ms
    assert foreign.process_ms(tmp_path, 13) == 0


def test_telemetry_reads_what_the_kernel_shows(tmp_path):
    write(
        tmp_path,
        {
            "class/thermal/thermal_zone0/type": "cpu-big\n",
            "class/thermal/thermal_zone0/temp": "41500\n",
            "class/thermal/thermal_zone1/temp": "unreadable\n",
            "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
            "cpuinfo": "processor\t: 0\nHardware\t: Qualcomm SM8550\n",
            "vmstat": "nr_free_pages 5\noom_kill 3\n",
        },
    )
    seen = telemetry.look(tmp_path)
    assert seen.temperatures_c == (telemetry.Reading("thermal_zone0:cpu-big", 41.5),)
    assert seen.clocks_mhz == (telemetry.Reading("cpu0", 1800.0),)
    assert telemetry.cpu_model(tmp_path) == "Qualcomm SM8550"
    assert telemetry.processes_killed_for_memory(tmp_path) == 3
    assert telemetry.processes_killed_for_memory(tmp_path / "class") is None


def test_peak_memory_begins_anew():
    code = (
        "from hetrl.device_bridge.runner.telemetry import memory_mb, peak_memory_mb, reset_peak_memory\n"
        "x = bytearray(80 << 20); del x\n"
        "high = peak_memory_mb()\n"
        "assert high > 80 and memory_mb() < high - 50\n"
        "assert not reset_peak_memory() or peak_memory_mb() < high - 50\n"
    )
    subprocess.run([sys.executable, "-c", code], env=IN_REPOSITORY, check=True)
