"""`hetrl calibrate`: a machine's numbers are found again under noise, and errors say how well."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import hetrl
from hetrl.calibrating import Calibration
from hetrl.calibration.machine_errors import HeldOut, _quantile
from hetrl.cli.main import run
from hetrl.condition import AT_REST
from hetrl.device_bridge.host.opening import calibrated_path, known_spec
from hetrl.device_bridge.recording import Recorder
from hetrl.device_bridge.spec import DeviceSpec, Known, load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.setting import Setting
from hetrl.envs.space import PlanSpace
from hetrl.errors import UsageError
from hetrl.graph import OperatorGraph
from hetrl.objective import Objective
from hetrl.plan import Evidence
from hetrl.profiling import ANY_OUTPUT, profile, random_plans
from hetrl.zoo.resolve import resolve_model
from tests.machine_help import CONTENTION, Truth, assumed

RESNET = resolve_model("resnet18")


def recorded(folder: Path, graph: OperatorGraph, truth: Truth, *, noise: float = 0.05, disturbed: float = 0.05) -> Path:
    file = folder / f"{graph.name}.jsonl"
    profile(Setting.on(truth.device(graph, noise, disturbed), AT_REST, ANY_OUTPUT), file)
    return file


def errors_of(spec: DeviceSpec, truth: Truth, graph: OperatorGraph) -> list[float]:
    """|predicted / true - 1| of plans that no recording holds, against the undisturbed machine."""
    guess, real = SurrogateDevice(spec, graph, "host"), truth.surrogate(graph)
    plans = random_plans(PlanSpace(guess, Objective()), 40, np.random.default_rng(1234))
    pairs = [(guess.measure(p, AT_REST).latency_ms, real.measure(p, AT_REST).latency_ms) for p in plans]
    return [abs(a / b - 1) for a, b in pairs if a is not None and b is not None]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Calibration, DeviceSpec]:
    folder = tmp_path_factory.mktemp("fitted")
    file = recorded(folder, RESNET, Truth())
    found = hetrl.calibrate([file], out=folder / "found.json")
    return found, load_spec(found.file)


def test_unseen_plans_are_predicted_although_runs_were_disturbed(fitted: tuple[Calibration, DeviceSpec]) -> None:
    found, spec = fitted
    assert np.median(errors_of(assumed(), Truth(), RESNET)) > 0.2  # what there is to learn
    assert np.median(errors_of(spec, Truth(), RESNET)) < 0.05
    assert found.median_error is not None and found.median_error < 0.15
    assert found.model_median_error is None


def test_what_is_written(fitted: tuple[Calibration, DeviceSpec]) -> None:
    found, spec = fitted
    engine = spec.engine("host")
    assert engine.calibrated_models == (RESNET.structure_hash,)
    assert {p.cost.launch_ms.source.value for p in engine.processors} == {"fitted"}
    assert [one.processor for one in found.processors] == [p.id for p in engine.processors]
    [shared] = [one.contention for one in found.processors if one.contention is not None]
    assert shared == pytest.approx(CONTENTION, abs=0.2)
    device = SurrogateDevice(spec, RESNET, "host")
    said = device.measure(random_plans(PlanSpace(device, Objective()), 1, np.random.default_rng(5))[0], AT_REST)
    assert said.evidence is Evidence.CALIBRATED
    assert said.latency_interval_ms is not None and said.latency_ms is not None
    wide = math.log(said.latency_interval_ms[1] / said.latency_ms)
    assert wide == pytest.approx(max(found.errors[Known.CALIBRATED].values()), rel=0.3)


def test_models_are_fitted_together_and_predict_each_other(tmp_path: Path) -> None:
    truth = Truth(seed=3, spread=0.05)
    graphs = [RESNET, resolve_model("vgg16")]
    files = [recorded(tmp_path, graph, truth, noise=0.02, disturbed=0.0) for graph in graphs]
    found = hetrl.calibrate(files, out=tmp_path / "both.json")
    assert set(found.models) == {"resnet18", "vgg16"}
    spec = load_spec(found.file)
    for graph in graphs:
        assert np.median(errors_of(spec, truth, graph)) < 0.08
    assert found.model_median_error is not None
    assert set(found.errors) == {Known.CALIBRATED, Known.UNSEEN}


def test_the_next_host_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    file = recorded(tmp_path, RESNET, Truth())
    found = hetrl.calibrate([file])
    assert found.file == str(calibrated_path("host")) and found.file.startswith(str(tmp_path))
    assert known_spec(assumed()) == load_spec(found.file) != assumed()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    file = recorded(tmp_path, RESNET, Truth())
    capsys.readouterr()
    assert run(["calibrate", str(file), "--out", str(tmp_path / "o.json"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["device"] == "host" and 0 < said["median_error"] < 0.2
    assert run(["calibrate", str(file)]) == 0
    out = capsys.readouterr().out
    assert "unseen plans are predicted within" in out and "hetrl train --device host --model resnet18" in out
    assert "cpu/openvino/fp32" in out
    assert run(["calibrate", str(file), "--out", str(tmp_path / "o.toml")]) == 2
    assert "does not end in .json" in capsys.readouterr().err


def test_recordings_that_cannot_be_fitted(tmp_path: Path) -> None:
    with Recorder(SurrogateDevice(load_spec("d1"), RESNET), tmp_path / "d1.jsonl") as device:
        device.measure(Setting.on(device, AT_REST, ANY_OUTPUT).cpu_plan(), AT_REST)
    with pytest.raises(UsageError, match="no machine that runs plans"):
        hetrl.calibrate([tmp_path / "d1.jsonl"], out=tmp_path / "o.json")
    with Recorder(Truth().device(RESNET), tmp_path / "empty.jsonl"):
        pass
    with pytest.raises(UsageError, match="no timelines of a machine at rest"):
        hetrl.calibrate([tmp_path / "empty.jsonl"], out=tmp_path / "o.json")
    with pytest.raises(UsageError, match="is not"):
        hetrl.calibrate([tmp_path / "d1.jsonl", tmp_path / "empty.jsonl"], out=tmp_path / "o.json")
    assert not (tmp_path / "o.json").exists()


def test_intervals_cover_nine_of_ten() -> None:
    rng = np.random.default_rng(0)
    inside = [abs(rng.normal()) <= _quantile([abs(e) for e in rng.normal(size=30)]) for _ in range(2000)]
    assert 0.88 < np.mean(inside) < 0.94
    assert HeldOut("cpu", 10.0, 8.0).relative_error == pytest.approx(0.2)
    assert HeldOut("cpu", 10.0, 8.0).log_error == pytest.approx(HeldOut("cpu", 8.0, 10.0).log_error)
