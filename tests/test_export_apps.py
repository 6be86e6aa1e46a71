"""Apps that load bundles without hetrl, and the command line around bundles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hetrl.cli.main import run
from hetrl.export.bundle import open_bundle
from hetrl.export.samples import samples
from tests.export_help import exported, random_model, shared_plans, written

DEMO = Path(__file__).resolve().parent.parent / "experiments" / "deploy_demo"
NO_HETRL = "import sys; sys.modules['hetrl'] = None; sys.argv = sys.argv[1:]; import runpy; runpy.run_path(sys.argv[0])"


@pytest.mark.parametrize("format_name", ["onnxruntime", "openvino", "ncnn"])
def test_an_app_classifies_without_hetrl(format_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = DEMO / f"{format_name}_app.py"
    assert len(app.read_text().splitlines()) <= 40
    if format_name != "ncnn":
        assert run(["run", format_name, "--print-loader"]) == 0
        (tmp_path / f"{format_name}_bundle.py").write_text(capsys.readouterr().out)
    model = random_model(tmp_path, 5)
    exported(shared_plans(model, 1)[0], model, format_name, tmp_path / "out")
    with open_bundle(tmp_path / "out") as bundle:
        inputs, outputs = samples(bundle)
    (given,), (scores, *_) = inputs.values(), outputs.values()
    np.save(tmp_path / "input.npy", given)
    done = subprocess.run(
        [sys.executable, "-c", NO_HETRL, app, "out", "input.npy", "stand-in"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == f"class {int(scores.argmax())}, score {scores.max():.4f}"


def test_the_loader_is_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("onnxruntime", "openvino"):
        assert run(["run", name, "--print-loader"]) == 0
        text = capsys.readouterr().out
        assert "import hetrl" not in text and "from hetrl" not in text
        assert sum(bool(line.strip()) for line in text.splitlines()) <= 45


def test_from_plan_to_outputs_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model(tmp_path, 5)
    plan = written(shared_plans(model, 1)[0], tmp_path)
    out = tmp_path / "bundle.zip"
    assert (
        run(["export", str(plan), "--model", str(model), "--format", "onnxruntime", "--out", str(out), "--json"]) == 0
    )
    done = json.loads(capsys.readouterr().out)
    assert {"out", "format", "files", "lowered"} <= set(done) and done["lowered"] == []
    assert run(["validate", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and {"name", "ok", "detail"} == set(found["checks"][0])
    assert found["evidence"] == "measured" and found["latency_ms"] > 0
    with open_bundle(out) as bundle:
        inputs, outputs = samples(bundle)
    np.savez(tmp_path / "in.npz", **{name: 0.5 * array for name, array in inputs.items()})
    command = [
        "run",
        str(out),
        "--input",
        str(tmp_path / "in.npz"),
        "--out",
        str(tmp_path / "out.npz"),
        "--repeats",
        "1",
    ]
    assert run(command) == 0
    with np.load(tmp_path / "out.npz") as arrays:
        assert set(arrays.files) == set(outputs)
        assert not np.array_equal(arrays[arrays.files[0]], outputs[arrays.files[0]])


def test_validating_a_plan_on_its_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model(tmp_path, 5)
    plan = shared_plans(model, 1)[0]
    assert run(["validate", str(written(plan, tmp_path)), "--model", str(model)]) == 0
    shown = capsys.readouterr().out
    assert "ok      runs" in shown and "predicted" in shown
    assert run(["validate", str(written(plan, tmp_path)), "--model", "vgg16"]) == 1
    assert "the plan is for another model" in capsys.readouterr().out
    assert run(["validate", str(written(plan, tmp_path)), "--model", str(model), "--device", "host"]) == 1
    assert "FAILED  fits the device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (["export"], 2, "takes a plan, --format and --out"),
        (["export", "nowhere.json", "--format", "ncnn", "--out", "x"], 2, "cannot be read"),
        (["export", "PLAN", "--format", "ncn", "--out", "x"], 2, "did you mean 'ncnn'?"),
        (["export", "PLAN", "--format", "ncnn", "--out", "x"], 2, "name its file with --model"),
        (["export", "PLAN", "--model", "vgg16", "--format", "ncnn", "--out", "x"], 2, "for another model"),
        (["export", "ZOO", "--format", "ncnn", "--out", "x"], 2, "--weights FILE"),
        (["export", "ZOO", "--format", "ncnn", "--out", "x"], 2, "--seeded-weights SEED"),
        (["export", "ZOO", "--format", "ncnn", "--out", "x", "--weights", "PLAN"], 2, "PLAN"),
        (["export", "ZOO", "--format", "ncnn", "--out", ".", "--seeded-weights", "0"], 2, "exists already"),
        (["export", "ZOO", "--format", "ncnn", "--out", "x", "--device", "d2", "--seeded-weights", "0"], 2, "is 'd2'"),
        (["validate", "nowhere"], 2, "does not exist"),
        (["run", "nowhere"], 2, "does not exist"),
        (["run", "nothing", "--print-loader"], 2, "unknown loader"),
        (["run", "PLAN"], 2, "is no bundle"),
    ],
)
def test_mistakes_cost_one_line(
    command: list[str],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tests.export_help import hand_plan

    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    model = random_model(tmp_path, 5)
    names = {
        "PLAN": written(shared_plans(model, 1)[0], tmp_path),
        "ZOO": written(hand_plan("posenet", "mulayer"), tmp_path),
    }
    assert run([str(names.get(word, word)) for word in command]) == status
    captured = capsys.readouterr()
    expected = names.get(said, said)
    assert str(expected) in captured.err + captured.out
    assert len(captured.err.splitlines()) <= 1
    assert not (tmp_path / "x").exists()


ACME = """
import json
from hetrl.export.base import Carries, Check, Exporter

class Acme(Exporter):
    name = "acme"
    summary = "a list of segments"
    carries = Carries(units=frozenset({"cpu"}))
    needs_weights = False

    def write(self, order, folder):
        (folder / "acme.json").write_text(json.dumps([list(s.processors) for s in order.plan.segments]))

    def readme(self, order):
        return "Read acme.json."

    def text_checks(self, bundle):
        found = json.loads((bundle.folder / "acme.json").read_text())
        yield Check("format", len(found) == len(bundle.manifest.plan.segments), "as many segments")

exporter = Acme()
"""


def test_a_format_of_a_third_party(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = tmp_path / "site" / "acme_format-1.0.dist-info"
    about.mkdir(parents=True)
    (tmp_path / "site" / "acme_format.py").write_text(ACME)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-format\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[hetrl.exporters]\nacme = acme_format:exporter\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert run(["export", "--list"]) == 0
    assert "acme" in capsys.readouterr().out
    model = random_model(tmp_path, 5)
    plan = next(p for p in shared_plans(model, 60) if any("gpu" in name for name in p.processors))
    command = ["export", str(written(plan, tmp_path)), "--model", str(model), "--format", "acme"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 1
    assert "--lower exports the best plan" in capsys.readouterr().err
    assert run([*command, "--out", str(tmp_path / "out"), "--lower"]) == 0
    assert "there is no gpu in this format" in capsys.readouterr().out
    assert run(["validate", str(tmp_path / "out")]) == 0
    assert "ok      format" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "acme.json").read_text()) == [["cpu/mace/fp32"]]
