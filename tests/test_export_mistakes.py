"""What people do with `hetrl export`, `validate` and `run` that they should not, and what they are told."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

import hetrl
from hetrl.cli.main import run
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.space import PlanSpace
from hetrl.errors import UsageError
from hetrl.export import writing
from hetrl.objective import Objective
from hetrl.plan import Evidence, Expected, encode_plan
from hetrl.testing.models import random_decisions
from hetrl.validating import validate_bundle, validate_plan
from hetrl.zoo.resolve import resolve_model
from tests.export_help import exported, hand_plan, random_model, random_plans, written


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_model(tmp_path, 5)


@pytest.fixture
def bundle(model: Path) -> Path:
    out = model.parent / "app"
    exported(random_plans(model, 1)[0], model, "onnxruntime", out)
    return out


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """Exit code, and all that is printed; never a traceback."""
    code = run([str(word) for word in words])
    shown = capsys.readouterr()
    assert "internal error" not in shown.err
    return code, shown.out + shown.err


def test_names_of_other_archives(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = written(random_plans(model, 1)[0], model.parent)
    asked = ("export", plan, "--model", model, "--format", "onnxruntime", "--out")
    assert said(capsys, *asked, model.parent / "app.tar.gz") == (
        2,
        f"error: {model.parent}/app.tar.gz: a bundle is a folder or a zip file; give a name without an ending, or with "
        ".zip\n",
    )
    code, _ = said(capsys, *asked, model.parent / "app.ZIP")
    assert code == 0 and zipfile.is_zipfile(model.parent / "app.ZIP")
    assert validate_bundle(model.parent / "app.ZIP", repeats=1).ok


def test_a_bundle_in_a_bundle(model: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = written(random_plans(model, 1)[0], model.parent)
    out = bundle / "deep" / "inside"
    code, text = said(capsys, "export", plan, "--model", model, "--format", "onnxruntime", "--out", out)
    assert code == 2 and f"is in the bundle {bundle}" in text
    assert validate_bundle(bundle, repeats=1).ok


def test_places_where_nothing_can_be_written(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = written(random_plans(model, 1)[0], model.parent)
    for out in ("/proc/app", model / "app"):
        code, text = said(capsys, "export", plan, "--model", model, "--format", "onnxruntime", "--out", out)
        assert code == 2 and f"{out} cannot be written" in text and "give another --out" in text


@pytest.mark.parametrize("ending", ["", ".zip"])
def test_somebody_else_was_faster(ending: str, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two exports to one name: the second one is refused, and nothing of the first is lost."""
    out, plan = tmp_path / f"app{ending}", random_plans(model, 1)[0]
    real = writing._put

    def late(made: Path, target: Path) -> None:
        monkeypatch.setattr(writing, "_put", real)
        exported(plan, model, "onnxruntime", out)
        real(made, target)

    monkeypatch.setattr(writing, "_put", late)
    with pytest.raises(UsageError, match="exists already"):
        exported(plan, model, "onnxruntime", out)
    assert validate_bundle(out, repeats=1).ok
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".app")] == []


def test_the_folder_that_one_is_in(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model.parent / "here").mkdir()
    monkeypatch.chdir(model.parent / "here")
    exported(random_plans(model, 1)[0], model, "onnxruntime", Path())
    assert validate_bundle(Path(), repeats=1).ok
    long = model.parent / ("n" * 250)
    exported(random_plans(model, 1)[0], model, "onnxruntime", long)
    assert validate_bundle(long, repeats=1).ok


def test_empty_folders_are_listed_nowhere(bundle: Path) -> None:
    (bundle / "more").mkdir()
    found = validate_bundle(bundle)
    assert not found.ok and "empty folder 'more'" in found.checks[-1].detail


def test_the_folder_is_packed_too(bundle: Path, tmp_path: Path) -> None:
    """As file managers do."""
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "app")
    found = validate_bundle(tmp_path / "packed.zip")
    assert not found.ok and "pack what is in the folder" in found.checks[-1].detail


def test_a_manifest_is_no_plan(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "validate", bundle / "manifest.json")
    assert code == 1 and "is a bundle's manifest" in text


def test_negative_seeds(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = written(hand_plan("resnet18", "mace_cpu"), model.parent)
    for command in (
        ("export", plan, "--format", "onnxruntime", "--out", model.parent / "app"),
        ("compress", "resnet18", "--prune", "0.3", "--out", model.parent / "small.onnx"),
        ("score", "resnet18", "--against", "resnet18"),
        ("validate", plan),
    ):
        code, text = said(capsys, *command, "--seeded-weights", "-1")
        assert code == 2 and "--seeded-weights" in text
    with pytest.raises(UsageError, match="no seed"):
        hetrl.tune("resnet18", "host", budget=1, seeded_weights=-1)


def test_weights_that_are_there_are_not_drawn(bundle: Path, model: Path) -> None:
    assert "random numbers" not in (bundle / "README.md").read_text()
    plan = written(random_plans(model, 1)[0], model.parent)
    asked = hetrl.exporting.Asked(model=str(model), seeded_weights=3)
    assert not any(
        "random" in note for note in hetrl.exporting.export(plan, "onnxruntime", bundle / ".." / "b", asked).notes
    )


def test_lost_external_weights_are_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside = tmp_path / "outside.onnx"
    loaded = onnx.load(model)
    onnx.save(loaded, outside, save_as_external_data=True, location="weights.data", size_threshold=0)
    plan = written(random_plans(outside, 1)[0], tmp_path)
    (tmp_path / "weights.data").unlink()
    code, text = said(capsys, "export", plan, "--model", outside, "--format", "onnxruntime", "--out", tmp_path / "o")
    assert code == 2 and "weights.data" in text and "--weights FILE" in text


def test_two_inferences_have_no_interval(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, text = said(capsys, "run", bundle, "--repeats", "2")
    assert "ms, measured, median of 2" in text.splitlines()[0]
    _, text = said(capsys, "run", bundle, "--repeats", "15")
    assert " to " in text.splitlines()[0]


def test_loaders_of_formats_that_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert "README.md" in said(capsys, "run", "codl", "--print-loader")[1]
    assert "did you mean 'openvino'" in said(capsys, "run", "openvin", "--print-loader")[1]


def test_another_size_of_input(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan does not say which size it was made for, only that it was another."""
    path = model.parent / "open.onnx"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, "size", "size")) for name in ("x", "y")]
    weight = helper.make_tensor("w", TensorProto.FLOAT, (3, 3, 3, 3), np.ones(81, np.float32).tobytes(), raw=True)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "open", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    space = PlanSpace(SurrogateDevice(load_spec("d1"), resolve_model(str(path), {"x": (1, 3, 16, 16)})), Objective())
    plan = written(space.plan(random_decisions(space, 0, 1)[:, 0]), model.parent)
    words = ("export", plan, "--model", path, "--format", "onnxruntime", "--out", model.parent / "o", "--input-shape")
    code, text = said(capsys, *words, "x:1x3x24x24")
    assert code == 2 and "--input-shape" in text


@pytest.mark.parametrize(
    ("factor", "ok"), [(1.0, True), (1.02, True), (0.98, True), (0.3, False), (3.0, False), (1e6, False)]
)
def test_a_promise_is_within_what_a_surrogate_says(factor: float, ok: bool, model: Path) -> None:
    """A device file that was fitted anew says something else, within its interval."""
    plan = replace(random_plans(model, 1)[0], expected=None)
    row = hetrl.measure(str(model), "d1", plan=plan)
    assert row.latency_ms is not None
    expected = Expected(
        condition="cold",
        latency_ms=row.latency_ms * factor,
        accuracy_drop_pct=0.0,
        frame_drop_rate=None,
        peak_memory_mb=None,
        energy_mj=None,
        evidence=Evidence.PREDICTED,
    )
    file = model.parent / "plan.json"
    file.write_bytes(encode_plan(replace(plan, expected=expected)))
    found = validate_plan(file, str(model))
    assert found.ok is ok, found.checks


def test_terminated_exports_leave_nothing(tmp_path: Path) -> None:
    plan = written(hand_plan("vgg16", "mace_cpu"), tmp_path)
    out = tmp_path / "there"
    out.mkdir()
    code = "from hetrl.cli.main import main; main()"
    words = ["export", str(plan), "--seeded-weights", "0", "--format", "onnxruntime", "--out", str(out / "app")]
    process = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.iterdir()) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    assert list(out.iterdir()), "it has begun to write"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted\n")
    assert list(out.iterdir()) == []


def test_the_next_command_knows_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hetrl.cli.profile import _again

    assert _again("resnet18", None) == ""
    assert _again("my model.onnx", ["x:1x3x8x8"]) == " --model 'my model.onnx' --input-shape x:1x3x8x8"
