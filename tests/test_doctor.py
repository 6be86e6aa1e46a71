"""What the doctor says of machines of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hetrl.cache import cache_folder
from hetrl.cli.main import run
from hetrl.device_bridge.recording import Recorder
from hetrl.device_bridge.runner.engines import NAMES
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.doctor import Finding, State, engines, examine, machine, packages, remote
from hetrl.doctor.finding import broken, missing, ok
from hetrl.errors import HetrlError, RunError, UnknownName
from hetrl.testing.devices import WITH_UI, whole_model_plans
from hetrl.testing.models import random_graph


def test_only_what_is_needed_is_fatal() -> None:
    assert not missing("a", "b").fatal and not broken("a", "b", "c").fatal and not ok("a", "b", needed=True).fatal
    assert missing("a", "b", needed=True).fatal and broken("a", "b", needed=True).fatal


def test_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETRL_CACHE", str(tmp_path))
    assert run(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = {f["check"]: f for f in document["findings"]}
    assert document["ok"]
    assert {"python", "packages", "engines", "cpu", "cores", "cache", "ssh", "adb", "foreign load", *NAMES} <= set(
        found
    )
    assert found["ncnn"]["state"] == "ok"
    assert all(f["hint"] for f in found.values() if f["state"] == "broken")
    assert run(["doctor", "--device", "d1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all that is needed works" and any(line.startswith("ok       d1") for line in lines)


def test_exit_code_and_next_step_where_something_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HETRL_CACHE", str(tmp_path / "file" / "inside"))
    monkeypatch.setattr(engines, "NAMES", ())
    assert run(["doctor", "--device", "host"]) == 1
    out = capsys.readouterr().out
    assert "broken   cache" in out and "export HETRL_CACHE" in out
    assert "missing  engines" in out and "pip install 'hetrl[ncnn]'" in out
    assert out.splitlines()[-1] == "something that is needed does not work"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise RuntimeError('no\\nluck')", "luck"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("import time; time.sleep(60)", "no answer"),
        ("raise SystemExit(3)", "status 3"),
    ],
)
def test_an_engine_that_breaks_is_a_finding(
    code: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ncnn.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(engines, "TIMEOUT_S", 10.0 if says != "no answer" else 2.0)
    found = engines.engine("ncnn")
    assert found.state is State.BROKEN and says in found.detail and found.hint
    assert engines.vulkan()[0].state is State.BROKEN


def test_an_engine_that_is_wrong_or_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "ask_probe", lambda *words: {"version": "1", "error": float("nan"), "devices": []})
    assert engines.engine("ncnn").state is State.BROKEN
    assert engines.vulkan()[0].state is State.MISSING and "mesa-vulkan-drivers" in engines.vulkan()[0].hint
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    absent = engines.engine("ncnn")
    assert absent.state is State.MISSING and absent.hint == "pip install 'hetrl[ncnn]'"
    assert engines.vulkan()[0].state is State.MISSING
    assert engines.any_engine((absent,)).fatal
    assert not engines.any_engine((absent, ok("openvino", ""))).fatal


def test_features_of_processors(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name : Xeon\nflags : sse avx2 avx512f avx512_vnni amx_tile amx_bf16\n")
    assert machine.cpu(tmp_path).detail == "Xeon: AVX2, AVX-512, AVX-512 VNNI, AMX, AMX bf16"
    (tmp_path / "cpuinfo").write_text("Hardware : Board\nFeatures : fp asimd asimddp i8mm\n")
    assert machine.cpu(tmp_path).detail == "Board: NEON, dot product, int8 matrices"
    assert machine.cpu(tmp_path / "none").state is State.MISSING


def test_clocks_and_temperatures(tmp_path: Path) -> None:
    assert machine.clocks(tmp_path).state is machine.temperatures(tmp_path).state is State.MISSING
    for number, khz in enumerate((600_000, 1_800_000)):
        folder = tmp_path / f"devices/system/cpu/cpu{number}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{khz}\n")
    zone = tmp_path / "class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("41500\n")
    assert machine.clocks(tmp_path).detail == "2 cores, 600 to 1800 MHz"
    assert machine.temperatures(tmp_path).detail == "1 zones, the hottest 42 degrees C"
    assert machine.quota(tmp_path).state is State.MISSING and machine.foreign_load(0, tmp_path).state is State.MISSING


def test_load_of_another_program_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            found = machine.foreign_load(1.0)
        finally:
            other.kill()
    assert found.state is State.BROKEN and "%" in found.detail


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.cache(tmp_path / "new").state is State.OK
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").touch()
    assert machine.cache(tmp_path / "file" / "inside").fatal
    monkeypatch.setattr(machine, "LITTLE_SPACE_MB", 1e12)
    assert machine.cache(tmp_path).state is State.BROKEN
    monkeypatch.delenv("HETRL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hetrl"
    monkeypatch.setenv("HETRL_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"numpy", "onnx", "msgspec"} <= set(packages.required())
    assert not {"ncnn", "matplotlib"} & set(packages.required())
    monkeypatch.setattr(packages, "required", lambda: ("numpy", "no-such-package"))
    found = packages.packages()
    assert found.fatal and found.hint == "pip install no-such-package"
    monkeypatch.setattr(packages, "OLDEST_PYTHON", (99, 0))
    assert packages.python().fatal


@pytest.mark.parametrize(
    ("listing", "state", "word"),
    [
        ("List of devices attached\n\n", State.MISSING, "none"),
        ("List of devices attached\nA1\tdevice\nB2\tdevice\n", State.OK, "A1, B2"),
        ("List of devices attached\nA1\tdevice\nB2\tunauthorized\n", State.BROKEN, "B2 is unauthorized"),
        ("* daemon not running; starting now\nList of devices attached\nC3\toffline\n", State.BROKEN, "C3 is offline"),
    ],
)
def test_phones(listing: str, state: State, word: str) -> None:
    found = remote.judged_phones(listing)
    assert found.state is state and word in found.detail


def test_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert remote.program("adb", "adb").hint == "apt install adb"
    assert remote.phones().state is State.MISSING
    for script, words in (("echo no server >&2; exit 1", "no server"), ("exit 1", "adb failed")):
        (tmp_path / "adb").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "adb").chmod(0o755)
        found = remote.phones()
        assert found.state is State.BROKEN and words in found.detail and found.hint == "adb kill-server"


def test_devices_that_do_not_answer_are_fatal_and_say_why() -> None:
    for address in ("ssh://nobody@127.0.0.1:1", "adb:no-such-serial"):
        last: Finding = examine(address)[-1]
        assert last.fatal and last.check == address and last.hint


def test_names_and_files(tmp_path: Path) -> None:
    graph = random_graph(1, 3)
    path = tmp_path / "r.jsonl"
    with Recorder(SurrogateDevice(load_spec("d1"), graph), path) as device:
        device.measure(whole_model_plans(device)[0], WITH_UI)
    assert examine(f"replay:{path}")[-1].detail == f"1 measurements of {graph.name} on d1"
    with pytest.raises(RunError):
        examine(f"replay:{tmp_path}/none")
    with pytest.raises(UnknownName):
        examine("d99")
    with pytest.raises(HetrlError):
        examine("ssh://-oProxyCommand=x")


def test_the_command_itself_imports_nothing_heavy() -> None:
    code = "import sys, hetrl.cli.doctor, hetrl.doctor.engines, hetrl.doctor.machine; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded: set[Any] = set(done.stdout.split())
    assert not {"torch", "scipy", "optuna", "stable_baselines3", "ncnn", "onnxruntime", "onnx"} & loaded
