"""`hetrl search`: options, JSON, interruptions, and what it does not import."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hetrl.agents.trials import read_trials
from hetrl.cli.main import run
from hetrl.cli.running import JSON_KEYS
from tests.tiny_models import save_tiny_cnn


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["--device", "d1", "--model", str(save_tiny_cnn(tmp_path / "tiny.onnx", size=32))]


def test_search_prints_the_keys_of_train_with_its_sampler(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("settings.toml").write_text("batch = 4\n")
    words = ["--sampler", "random", "--budget", "9", "--no-seeds", "--config", "settings.toml", "--quiet", "--json"]
    assert run(["search", *tiny, *words]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == set(JSON_KEYS) - {"agent"} | {"sampler", "compression"}
    assert (document["sampler"], document["evaluations"]) == ("random", 9)
    config = json.loads(Path(document["run"], "config.json").read_bytes())
    assert (config["kind"], config["settings"]["batch"]) == ("sampler", 4)
    assert Path(document["plan"]).is_file()


def test_search_says_what_to_type_next(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", *tiny, "--sampler", "annealing", "--budget", "5", "--quiet"]) == 0
    assert "hetrl plan show runs/tiny-d1/plan.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sampler", "anealing"], "unknown sampler 'anealing'; did you mean 'annealing'?"),
        (["--budget", "0"], "--budget 0 is out of range"),
        (["--resume", "a", "--out", "b"], "leave --out away"),
        (["--config", "missing.toml"], "missing.toml cannot be read"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], says: str, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["search", *tiny, *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err


def _search(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hetrl.cli.main", "search", "--json", "--sampler", "tpe", "--no-seeds", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _wait_for(process: subprocess.Popen[bytes], path: Path, lines: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") > lines:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {lines} trials: {process.communicate()[1].decode()}")


def test_interrupted_then_killed_then_resumed(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    trials = Path("run/trials.jsonl")
    stopped = _search(*tiny, "--out", "run", "--budget", "100000")
    _wait_for(stopped, trials, 20)
    os.kill(stopped.pid, signal.SIGINT)
    out, err = stopped.communicate(timeout=120)
    assert stopped.returncode == 130 and b"Traceback" not in err
    kept = trials.read_bytes()
    assert json.loads(out)["evaluations"] == len(read_trials(trials)[1])
    killed = _search(*tiny, "--resume", "run", "--budget", "100000")
    _wait_for(killed, trials, kept.count(b"\n") + 10)
    killed.kill()
    killed.communicate()
    kept = trials.read_bytes()
    budget = len(read_trials(trials)[1]) + 5
    words = ["--sampler", "tpe", "--no-seeds", "--json", "--quiet", "--resume", "run", "--budget", str(budget)]
    assert run(["search", *tiny, *words]) == 0
    assert json.loads(capsys.readouterr().out)["evaluations"] == budget
    assert trials.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    keys = [t.key for t in read_trials(trials)[1]]
    assert len(set(keys)) == len(keys) == budget
    # Alone, with the budget from the start, it proposes the same.
    assert run(["search", *tiny, "--out", "whole", *words[:-4], "--budget", str(budget)]) == 0
    assert Path("whole/trials.jsonl").read_bytes() == trials.read_bytes()


def test_help_and_mistakes_import_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from hetrl.cli.main import run; "
        "run(['search', '--help']); run(['search', '--device', 'd1', '--model', 'vgg16', '--budget', '0']); "
        "print([m for m in ('optuna', 'torch', 'scipy', 'cmaes') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
