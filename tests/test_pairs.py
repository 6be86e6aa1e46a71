"""The experiment over all pairs: its summary counts what it says, and its settings are those of the study."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import pytest

import hetrl
from hetrl.plan import Evidence
from hetrl.results import Comparison, Pair, Row

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "experiments"))  # scripts import each other as they do when they are run

import pairs as experiment  # noqa: E402


def row(policy: str, latency_ms: float, gap: float | None = None, keeps: bool = True) -> Row:
    return Row(
        policy=policy, latency_ms=latency_ms, latency_interval_ms=None, accuracy_drop_pct=0.0, peak_memory_mb=1.0,
        model_size_mb=1.0, energy_mj=None, frame_drop_rate=0.0, fallback_ratio=0.0, processors=("cpu/mace/fp32",),
        utilization={}, keeps_budgets=keeps, evidence=Evidence.PREDICTED, gap_to_exact=gap,
    )  # fmt: skip


def pair(*rows: Row) -> Pair:
    kept = sorted((r for r in rows if r.keeps_budgets), key=lambda r: r.latency_ms or 0.0)
    found = Comparison(
        device="d1", model="m", engine="mace", condition="cold", rows=rows, winner=kept[0].policy if kept else None
    )
    return Pair(device="d1", model="m", inputs="", wall_s=0.0, comparison=found)


def test_a_summary_counts_what_went_wrong() -> None:
    good = pair(
        row("learned", 10.0, 0.0), row("exact", 10.0, 0.0), row("mace_cpu", 20.0), row("fast", 1.0, keeps=False)
    )
    late = pair(row("learned", 10.0, 0.25), row("exact", 8.0, 0.0), row("mace_cpu", 80.0))
    worst = pair(row("learned", 10.0, 0.25), row("exact", 8.0, 0.0), row("mace_cpu", 9.0))
    broken = pair(row("learned", 10.0, keeps=False), row("mace_cpu", 9.0, keeps=False))
    crashed = msgspec.structs.replace(good, comparison=None, error="died")
    told = experiment.Summary.of(experiment.Setting(), [good, late, broken, crashed])
    assert (told.pairs, told.failed, told.worse_than_hand, told.worse_than_seeds, told.optimal) == (4, 2, 0, 1, 1)
    assert told.over_hand == pytest.approx(4.0) and told.over_single == pytest.approx(4.0)  # of 2 and 8
    assert told.mean_gap_pct == pytest.approx(12.5) and told.largest_gap_pct == pytest.approx(25.0)
    assert experiment.Summary.of(experiment.Setting(), [worst]).worse_than_hand == 1
    none = experiment.Summary.of(experiment.Setting(), [crashed])
    assert none.over_hand is None and none.mean_gap_pct is None
    (line,) = [line for line in experiment.summary_table([none], 60) if line.startswith("| cold |")]
    assert line.count("|") == 11 and "| - |" in line


def test_settings_have_folders_of_their_own() -> None:
    settings = experiment.ALL_SETTINGS
    assert [(s.condition, s.max_frame_drop_pct) for s in settings] == [
        ("cold", None), ("sigma2", None), ("cold,competitors=2", None), ("cold", 5.0),
    ]  # fmt: skip
    assert len({setting.folder for setting in settings}) == len(settings)
    assert settings[3].objective.max_frame_drop_rate == 0.05 and settings[0].objective.max_frame_drop_rate is None


def test_a_report_of_two_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--devices", "d1", "--models", "resnet18", "--jobs", "1", "--out", str(tmp_path), "--write"]
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    monkeypatch.setattr(experiment, "ALL_SETTINGS", (experiment.Setting(), experiment.Setting("cold", 5.0)))
    monkeypatch.setattr(sys, "argv", ["pairs.py", *words, "--all-settings"])
    (tmp_path / "docs").mkdir()
    experiment.main()
    text = (tmp_path / "docs" / "pairs.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    lines = text.splitlines()
    assert "Made by `python experiments/pairs.py --devices d1" in text
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| cold")] == [
        "cold", "cold, frame drops at most 5 %",
    ]  # fmt: skip
    assert "## Cold, pair by pair" in lines and "## What an app would ship today" in lines
    found = json.loads((tmp_path / "docs" / "pairs.json").read_text(encoding="utf-8"))
    assert [(one["max_frame_drop_pct"], len(one["pairs"])) for one in found] == [(None, 1), (5.0, 1)]
    assert found[1]["pairs"][0]["latency_ms"] >= found[0]["pairs"][0]["latency_ms"]
    monkeypatch.setattr(hetrl.sweeping, "compare_pair", None)  # whatever is done is not done again
    experiment.main()
    assert (tmp_path / "docs" / "pairs.md").read_text(encoding="utf-8") == text
