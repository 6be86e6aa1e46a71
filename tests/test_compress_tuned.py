"""`hetrl compress` with data: fine-tuning, and accuracy before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hetrl.cli.main import run
from tests.digits import Digits


def test_half_of_the_channels_cost_two_points_at_most_after_training(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compress", str(digits.model), "--prune", "0.5", "--eval-data", str(digits.test), "--json"]
    assert run([*words, "--out", str(tmp_path / "cut.onnx")]) == 0
    cut = json.loads(capsys.readouterr().out)
    assert cut["finetuned"] is None and cut["scores"]["drop"]["points"] > 5  # or what follows would prove nothing
    trained = ["--finetune", "5", "--train-data", str(digits.train)]
    assert run([*words, *trained, "--out", str(tmp_path / "trained.onnx")]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["scores"]["drop"]["points"] <= 2.0 and found["scores"]["drop"]["evidence"] == "measured"
    assert found["parameters"] == cut["parameters"] and found["finetuned"]["best"] >= 1
    assert "epoch 5/5" in err


def test_a_person_reads_the_same(digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compress", str(digits.model), "--prune", "0.1", "--finetune", "1", "--train-data", str(digits.train)]
    assert run([*words, "--eval-data", str(digits.test), "--out", str(tmp_path / "small.onnx")]) == 0
    out = capsys.readouterr().out
    assert "trained    epoch" in out and "points on 719 samples (measured)" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prune", "0.5", "--finetune", "2"], "--train-data FILE"),
        (["--prune", "0.5", "--train-data", "x.npz"], "--finetune EPOCHS"),
        (["--int8", "--finetune", "2", "--train-data", "x.npz"], "nothing to train away"),
        (["--prune", "0.5", "--finetune", "0", "--train-data", "x.npz"], "epoch"),
        (["--prune", "0.5", "--finetune", "1", "--train-data", "nowhere.npz"], "nowhere.npz"),
        (["--prune", "0.5", "--eval-data", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_mistakes_are_said_in_one_line_before_anything_is_written(
    digits: Digits, tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.onnx"
    assert run(["compress", str(digits.model), *words, "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err and not out.exists()
