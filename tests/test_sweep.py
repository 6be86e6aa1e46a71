"""Sweeps compute every pair once, whatever happens to some of them, and say the same each time."""

import csv
import io
import json
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

import hetrl
from hetrl import sweep, sweeping
from hetrl.cli.main import run
from hetrl.errors import HetrlError, RunError, UnknownName, UsageError
from hetrl.objective import Objective
from hetrl.plan import Evidence
from hetrl.report.sweep import HEADER, draw_heatmap, sweep_csv, sweep_markdown, write_sweep
from hetrl.results import Comparison, Pair, Row, Sweep

CPU = "cpu/mace/fp32"


def comparison(job: sweeping.Job) -> Comparison:
    """A quick one whose latencies depend on the names."""
    base = 10.0 + len(job.model)
    rows = tuple(
        Row(
            policy=policy, latency_ms=base * times, latency_interval_ms=None, accuracy_drop_pct=0.0,
            peak_memory_mb=1.0, model_size_mb=1.0, energy_mj=None, frame_drop_rate=None, fallback_ratio=0.0,
            processors=(CPU,), utilization={CPU: 1.0}, keeps_budgets=True, evidence=Evidence.PREDICTED,
            speedup_over_single=2.0 / times, gap_to_exact=times - 1.0,
        )
        for policy, times in (("exact", 1.0), ("mace_cpu", 2.0))
    )  # fmt: skip
    return Comparison(
        device=job.device, model=job.model, engine="mace", condition="cold", rows=rows, winner="exact",
        bound_ms=base, exact_ms=base,
    )  # fmt: skip


class Compared:
    """Stands in for the comparisons; notes each, and does what is asked for some."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fails: dict[tuple[str, str], BaseException] = {}

    def __call__(self, job: sweeping.Job) -> Comparison:
        self.calls.append((job.device, job.model))
        if (job.device, job.model) in self.fails:
            raise self.fails[job.device, job.model]
        return comparison(job)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Compared:
    stand_in = Compared()
    monkeypatch.setattr(sweeping, "_compare", stand_in)
    return stand_in


DEVICES, MODELS = ("d2", "d1"), ("vgg16", "resnet18")
ALL = [(device, model) for device in DEVICES for model in MODELS]


def swept(folder: Path, **options: object) -> Sweep:
    return sweep(DEVICES, MODELS, out=folder, jobs=1, **options)  # type: ignore[arg-type]


def named(one: Sweep) -> list[tuple[str, str]]:
    return [(pair.device, pair.model) for pair in one.pairs]


def test_nothing_is_computed_twice(found: Compared, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    first = swept(tmp_path, watch=lambda pair, done, total: seen.append((done, total)))
    assert found.calls == named(first) == ALL  # in the order that was asked for
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert swept(tmp_path) == first
    assert len(found.calls) == 4
    more = sweep(("d1", "d3"), MODELS, out=tmp_path, jobs=1)
    assert found.calls[4:] == [("d3", "vgg16"), ("d3", "resnet18")]
    assert named(more) == [(d, m) for d in ("d1", "d3") for m in MODELS]


def test_a_changed_device_file_is_compared_anew(found: Compared, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    text = msgspec.json.encode(hetrl_spec())
    file.write_bytes(text)
    sweep([str(file)], ["vgg16"], out=tmp_path / "out", jobs=1)
    sweep([str(file)], ["vgg16"], out=tmp_path / "out", jobs=1)
    assert len(found.calls) == 1
    file.write_bytes(text.replace(b'"Xiaomi', b'"My Xiaomi', 1))
    sweep([str(file)], ["vgg16"], out=tmp_path / "out", jobs=1)
    assert len(found.calls) == 2


def hetrl_spec() -> object:
    from hetrl.device_bridge.spec import load_spec

    return load_spec("d1")


def test_a_pair_that_fails_does_not_end_the_others_and_is_tried_again(found: Compared, tmp_path: Path) -> None:
    found.fails = {ALL[0]: HetrlError("no such thing", "try that"), ALL[2]: ZeroDivisionError("division by zero")}
    one = swept(tmp_path)
    assert [pair.error for pair in one.pairs] == [
        "no such thing; try that", None, "internal error, ZeroDivisionError: division by zero", None,
    ]  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(sweep_csv(one))))
    assert [line["error"] for line in lines if line["error"]] == [pair.error for pair in one.pairs if pair.error]
    assert "d2, vgg16: no such thing; try that" in sweep_markdown(one)
    found.fails = {}
    assert [pair.error for pair in swept(tmp_path).pairs] == [None] * 4
    assert found.calls[4:] == [ALL[0], ALL[2]]


def test_an_interrupt_keeps_what_is_done(found: Compared, tmp_path: Path) -> None:
    found.fails = {ALL[2]: KeyboardInterrupt()}
    one = swept(tmp_path)
    assert one.interrupted and named(one) == ALL[:2]
    found.fails = {}
    whole = swept(tmp_path)
    assert not whole.interrupted and named(whole) == ALL
    assert found.calls[3:] == ALL[2:]


def test_a_torn_last_line_is_dropped(found: Compared, tmp_path: Path) -> None:
    swept(tmp_path)
    file = tmp_path / "pairs.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert named(swept(tmp_path)) == ALL
    assert found.calls[4:] == ALL[3:]
    assert len(file.read_bytes().splitlines()) == 5


def test_a_folder_holds_one_sweep(found: Compared, tmp_path: Path) -> None:
    swept(tmp_path)
    with pytest.raises(RunError, match="a sweep with another objective; give another --out"):
        swept(tmp_path, objective=Objective(max_frame_drop_rate=0.1))
    with pytest.raises(RunError, match="another condition"):
        swept(tmp_path, condition="sigma1")
    (tmp_path / "pairs.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(RunError, match="damaged"):
        swept(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be written into"):
        swept(tmp_path / "file")


@pytest.mark.parametrize(
    ("devices", "models", "options", "error"),
    [
        (["d11"], ["vgg16"], {}, "did you mean 'd1'"),
        (["d1"], ["vgg61"], {}, "did you mean 'vgg16'"),
        (["d1"], ["gone.onnx"], {}, "gone.onnx does not exist"),
        (["d1", "d1"], ["vgg16"], {}, "names 'd1' twice"),
        (["d1"], [], {}, "the list of models is empty"),
        ([""], ["vgg16"], {}, "the list of devices is empty"),
        (["d1"], ["vgg16"], {"jobs": 0}, "give --jobs 1 or more"),
        (["d1"], ["vgg16"], {"engine": "maze"}, "did you mean 'mace'"),
        (["d1"], ["vgg16"], {"condition": "clod"}, "did you mean 'cold'"),
        (["d1"], ["vgg16"], {"train": True, "agent": "nobody"}, "unknown agent"),
    ],
)
def test_mistakes_leave_no_folder(
    found: Compared, tmp_path: Path, devices: list[str], models: list[str], options: dict[str, object], error: str
) -> None:
    with pytest.raises((UsageError, UnknownName, HetrlError), match=error):
        sweep(devices, models, out=tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists() and not found.calls


# ---- processes -----------------------------------------------------------------------------------------------------


def test_processes_say_what_one_alone_says(tmp_path: Path) -> None:
    models = ["resnet18", "posenet"]
    alone = sweep(["d1"], models, out=tmp_path / "1", jobs=1)
    both = sweep(["d1"], models, out=tmp_path / "2", jobs=2)
    assert [pair.comparison for pair in alone.pairs] == [pair.comparison for pair in both.pairs]
    assert sweep_csv(alone) == sweep_csv(both)
    direct = hetrl.compare("posenet", "d1")
    assert both.pairs[1].comparison is not None and both.pairs[1].comparison.winner == direct.winner


def die(job: sweeping.Job) -> Pair:
    """Runs in a process of the pool."""
    if job.model == "resnet18":
        os.kill(os.getpid(), signal.SIGKILL)
    return Pair(device=job.device, model=job.model, inputs=job.inputs, wall_s=0.0, comparison=comparison(job))


def test_a_process_that_dies_costs_only_its_own_pair(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sweeping, "compare_pair", die)
    one = sweep(["d1"], ["resnet18", "vgg16", "posenet"], out=tmp_path, jobs=2)
    assert [pair.error for pair in one.pairs] == [sweeping.DIED, None, None]


# ---- files ---------------------------------------------------------------------------------------------------------


def test_files(found: Compared, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one = swept(tmp_path)
    assert [path.name for path in write_sweep(one, tmp_path)] == ["sweep.csv", "sweep.md", "heatmap.png"]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_sweep(swept(tmp_path), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert before["heatmap.png"].startswith(b"\x89PNG")
    lines = list(csv.DictReader(io.StringIO(before["sweep.csv"].decode())))
    assert len(lines) == 8 and tuple(lines[0]) == HEADER
    assert [(line["device"], line["policy"], line["winner"]) for line in lines[:2]] == [
        ("d2", "exact", "True"), ("d2", "mace_cpu", "False"),
    ]  # fmt: skip
    markdown = before["sweep.md"].decode()
    assert "| model | d2 | d1 |" in markdown
    assert "| vgg16 | mace_cpu 30.00; 15.00 (optimal) 2.00x | mace_cpu 30.00; 15.00 (optimal) 2.00x |" in markdown
    assert "2.00 times as fast as the best single processor" in markdown


def test_without_matplotlib_there_is_no_picture_and_a_note(
    found: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = ["compare", "--all", "--devices", "d1", "--models", "vgg16", "--jobs", "1", "--out", str(tmp_path)]
    assert run([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert [Path(file).name for file in json.loads(out)["files"]] == ["pairs.jsonl", "sweep.csv", "sweep.md"]
    assert "pip install 'hetrl[plots]'" in err
    with pytest.raises(HetrlError):
        draw_heatmap(swept(tmp_path / "again"), tmp_path / "no.png")


def test_the_command(found: Compared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--all", "--devices", "d1,d2", "--models", "vgg16", "--jobs", "1", "--out", str(tmp_path)]
    assert run(words) == 0
    out, err = capsys.readouterr()
    assert "2.00x" in out and "sweep.csv" in out
    assert err.splitlines()[0].startswith("1/2 d1 vgg16: exact 15.00 ms (optimal), 2.00x, ")
    assert run([*words, "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    pairs = json.loads(out)["pairs"]
    assert [(p["device"], p["winner"], p["gap_to_exact"], p["error"]) for p in pairs] == [
        ("d1", "exact", 0.0, None), ("d2", "exact", 0.0, None),
    ]  # fmt: skip


def test_the_command_s_exit_codes(found: Compared, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--all", "--devices", "d1", "--models", "vgg16,posenet", "--jobs", "1", "--quiet"]
    found.fails = {("d1", "posenet"): KeyboardInterrupt()}
    assert run([*words, "--out", str(tmp_path / "a")]) == 130
    assert "the same command goes on" in capsys.readouterr().out
    found.fails = {("d1", model): HetrlError("broken") for model in ("vgg16", "posenet")}
    assert run([*words, "--out", str(tmp_path / "b")]) == 1
    out, err = capsys.readouterr()
    assert "d1, posenet: broken" in out
    assert err.startswith("error: none of 2 pairs has a plan that keeps the budgets; see ")
