"""kill -9 at random moments: after `--resume` nothing is lost, nothing measured twice, and the plan is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.kill import killed_often
from tests.tiny_models import save_tiny_cnn


@pytest.mark.parametrize("command", [["train", "--agent", "maskable-ppo"], ["search", "--sampler", "tpe"]])
def test_killed_runs_lose_nothing_and_repeat_nothing(command: list[str], tmp_path: Path) -> None:
    model = str(save_tiny_cnn(tmp_path / "tiny.onnx"))
    about = ["--device", "d1", "--model", model, "--budget", "100", "--no-seeds"]
    kills = killed_often([*command, *about], tmp_path, moments=3, seed=1)
    assert any(0 < kill.evaluations < 100 for kill in kills), "all kills came too early or too late"
