"""Accuracy measured on the user's data while plans are tuned, and the half that is held back."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hetrl
from hetrl.accuracy import predicted_accuracy_drop_pct
from hetrl.agents.run_folder import RunFolder
from hetrl.cli.main import run
from hetrl.compression import NO_COMPRESSION, Compression
from hetrl.envs.compressions import LOW_RANKS, MOST_TRIED, RATIOS
from hetrl.envs.setting import Setting
from hetrl.errors import HetrlError
from hetrl.objective import Objective
from hetrl.plan import Evidence
from hetrl.scoring.measured_drops import Evaluation, MeasuredDrops
from tests.digits import Digits
from tests.host_help import quick_host


def setting(digits: Digits, points: float, told: list[str] | None = None) -> Setting:
    heard = told if told is not None else []
    return Setting.of(
        str(digits.model), "d1", engine=None, condition=None, objective=Objective(max_accuracy_drop_pct=points),
        input_shapes=None, evaluation=Evaluation(data=str(digits.test), metric="top1"), tell=heard.append,
    )  # fmt: skip


def test_what_the_budget_allows_is_what_was_measured(digits: Digits) -> None:
    told: list[str] = []
    found = setting(digits, 5.0, told)
    offered = found.space.compressions
    assert offered[0] == NO_COMPRESSION and Compression(0.5) not in offered
    assert Compression(0.3) in offered  # fitted to what channels carried; by prediction it costs 4.92 points
    assert any(len(compression.ratios) > 1 for compression in offered)
    drops = found.drops
    assert isinstance(drops, MeasuredDrops)
    assert all(drops.compressed_pct(compression) <= 5.0 for compression in offered)
    assert drops.compressed_pct(Compression(0.3)) != predicted_accuracy_drop_pct(0.3)
    assert drops.evidence(Compression(0.1)) is Evidence.MEASURED and "on the tuning half" in told[0]
    assert len(told) <= len(RATIOS) + MOST_TRIED + 3 * len(LOW_RANKS)


def test_halves_are_apart_and_the_last_look_is_at_the_other(digits: Digits) -> None:
    drops = setting(digits, 5.0).drops
    assert isinstance(drops, MeasuredDrops)
    tuning, held_back = drops._tuning, drops._held_back
    assert not set(tuning.rows) & set(held_back.rows)
    assert len(tuning) + len(held_back) == len(np.load(digits.test)["labels"])
    last = drops.held_back(Compression(0.1))
    assert last.samples == len(held_back) and last.interval_pct is not None
    assert last.interval_pct[0] <= last.drop_pct <= last.interval_pct[1]
    unpruned = drops.held_back(NO_COMPRESSION)
    assert unpruned.drop_pct == 0.0


def test_what_breaks_the_budget_on_the_other_half_is_refused_and_said(digits: Digits) -> None:
    told: list[str] = []
    found = setting(digits, 5.0, told)
    plan, drops = found.cpu_plan(), found.drops
    assert isinstance(drops, MeasuredDrops) and not drops.refuses(plan)
    pruned = msgspec.structs.replace(plan, compression=Compression(0.5))
    assert drops.refuses(pruned) and drops.refuses(pruned)
    assert sum("is not taken" in sentence for sentence in told) == 1


def test_a_duel_is_not_won_by_a_plan_that_was_refused(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the planner's exact plan, which prunes, is among the plans that take part."""
    monkeypatch.setattr(MeasuredDrops, "refuses", lambda self, plan: plan.compression.prunes)
    with quick_host(tmp_path):
        found = hetrl.search(
            str(digits.model), "host", sampler="random", budget=4, eval_data=digits.test,
            objective=Objective(max_accuracy_drop_pct=5.0),
        )  # fmt: skip
    assert found.plan.compression == Compression()


def test_a_label_that_does_not_fit_is_said_before_anything_is_searched(digits: Digits, tmp_path: Path) -> None:
    data = dict(np.load(digits.test))
    held_back = setting(digits, 5.0).drops._held_back.rows  # type: ignore[attr-defined]
    data["labels"][held_back[-1]] = 99
    np.savez(tmp_path / "bad.npz", **data)
    with pytest.raises(HetrlError, match="99"):
        hetrl.tune(str(digits.model), "d1", eval_data=tmp_path / "bad.npz", budget=3, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_on_other_data_cannot_be_resumed(digits: Digits, tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    data = dict(np.load(digits.test))
    np.savez(file, **data)
    arguments = {"eval_data": file, "objective": Objective(max_accuracy_drop_pct=5.0)}
    hetrl.search(str(digits.model), "d1", sampler="random", budget=4, out=tmp_path / "run", **arguments)
    np.savez(file, **{name: array[:-1] for name, array in data.items()})
    with pytest.raises(HetrlError, match="evaluation data"):
        hetrl.search(str(digits.model), "d1", sampler="random", budget=6, resume=tmp_path / "run", **arguments)


def test_a_plan_that_fails_the_last_look_is_not_taken(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {
        "objective": Objective(max_accuracy_drop_pct=5.0),
        "eval_data": digits.test,
        "budget": 12,
        "agent": "auto",
    }
    kept = hetrl.tune(str(digits.model), "d1", **arguments)
    assert kept.plan.compression.prunes and kept.accuracy is not None
    assert kept.accuracy_drop_pct == kept.accuracy.drop_pct <= 5.0
    monkeypatch.setattr(MeasuredDrops, "refuses", lambda self, plan: plan.compression.prunes)
    refused = hetrl.tune(str(digits.model), "d1", **arguments)
    assert refused.plan.compression == Compression() and refused.accuracy_drop_pct == 0.0
    assert refused.latency_ms > kept.latency_ms


def test_a_run_remembers_its_data_and_says_what_was_measured(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--device", "d1", "--model", str(digits.model), "--eval-data", str(digits.test), "--budget", "8",
             "--max-accuracy-drop", "5"]  # fmt: skip
    assert run([*words, "--out", str(tmp_path / "r"), "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["accuracy"]["evidence"] == "measured" and said["accuracy"]["metric"] == "top1"
    assert said["accuracy_drop_pct"] == said["accuracy"]["drop_pct"]
    config = RunFolder.open(tmp_path / "r").read_config()
    assert config.evaluation == Evaluation(data=str(digits.test), metric="top1")
    assert run([*words, "--resume", str(tmp_path / "r")]) == 0
    out = capsys.readouterr().out
    assert "samples that were held back" in out
    without = [word for word in words if word not in ("--eval-data", str(digits.test))]
    assert run([*without, "--resume", str(tmp_path / "r"), "--budget", "9"]) == 2
    assert "evaluation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"eval_data": "nowhere.npz"}, "nowhere.npz"),
        ({"metric": "top2"}, "top2"),
        ({"model": "vgg16"}, "--seeded-weights"),
    ],
)
def test_mistakes_are_said_in_one_line(digits: Digits, change: dict[str, str], told: str) -> None:
    arguments = {"model": str(digits.model), "device": "d1", "eval_data": str(digits.test)} | change
    with pytest.raises(HetrlError) as caught:
        hetrl.tune(**arguments, budget=2)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_pruned_plan_of_the_digits_network_runs_here(digits: Digits, tmp_path: Path) -> None:
    with quick_host(tmp_path):
        found = hetrl.search(
            str(digits.model), "host", sampler="random", budget=8, seeds=True, eval_data=digits.test,
            objective=Objective(max_accuracy_drop_pct=2.0),
        )  # fmt: skip
        assert found.accuracy is not None and found.accuracy.drop_pct <= 2.0
        pruned = msgspec.structs.replace(found.plan, compression=Compression(0.1), expected=None)
        row = hetrl.measure(str(digits.model), "host", plan=pruned)
        assert row.latency_ms is not None and row.evidence is Evidence.MEASURED


def spoilt(digits: Digits, how: str, file: Path) -> Path:
    """The trained network with something wrong with it."""
    model = onnx.load(digits.model)
    if how == "nan":
        weight = model.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(weight), np.nan), weight.name))
    elif how == "training":
        norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
        kept = [attribute for attribute in norm.attribute if attribute.name != "training_mode"]
        del norm.attribute[:]
        norm.attribute.extend([*kept, helper.make_attribute("training_mode", 1)])
        norm.output.extend(["running.mean", "running.var"])
    elif how == "weightless":
        for tensor in model.graph.initializer:
            if len(tensor.dims) > 1:
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value="nowhere.bin")
    onnx.save(model, file)
    return file


@pytest.mark.parametrize(
    ("how", "metric", "told"),
    [
        ("nan", "top1", "NaN"),
        ("training", "top1", "training mode"),
        ("weightless", "top1", "--seeded-weights"),
        ("sound", "tests.metric_help:raises", "raises"),
        ("sound", "tests.metric_help:nothing", "nothing"),
        ("sound", "top2", "top1"),
        ("sound", "mse", "targets"),
    ],
)
def test_training_on_data_that_cannot_be_scored_is_one_clear_line(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, metric: str, told: str
) -> None:
    model = spoilt(digits, how, tmp_path / "model.onnx")
    words = ["--device", "d1", "--model", str(model), "--eval-data", str(digits.test), "--metric", metric]
    out = tmp_path / "run"
    assert run(["train", *words, "--max-accuracy-drop", "1", "--budget", "3", "--out", str(out), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and told in said and "Traceback" not in said and len(said.splitlines()) <= 2
    assert not out.exists()
