"""The driver: seeds, budgets, determinism, resume, interruptions, failing devices, agents of third parties."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnx.parser
import pytest
import torch

import hetrl
from hetrl import plugins
from hetrl.agents.base import AgentRun, Method, NoSettings
from hetrl.agents.comparison import rows_in_turns
from hetrl.agents.problem import Problem
from hetrl.agents.trials import TrialLog, read_trials
from hetrl.agents.tuner import Search, run_search
from hetrl.condition import Condition
from hetrl.device_bridge.base import MockDevice
from hetrl.device_bridge.recording import Recorder, read_recording
from hetrl.device_bridge.registry import open_device
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.errors import Infeasible, RunError, UsageError
from hetrl.measurement import Failure, Measurement
from hetrl.objective import Objective
from hetrl.plan import Plan, load_plan
from hetrl.plan_check import check_plan
from hetrl.progress import Silent
from hetrl.zoo.resolve import resolve_model


@pytest.mark.parametrize("seed", [0, 1])
def test_seeded_plan_is_never_worse_than_the_best_hand_policy(seed: int, tmp_path: Path) -> None:
    runs = [hetrl.tune("vgg16", "d1", budget=30, seed=seed, out=tmp_path / name) for name in ("a", "b")]
    for result in runs:
        assert result.best_hand is not None and result.gap_to_exact is not None
        assert result.latency_ms <= result.best_hand.latency_ms
        assert result.gap_to_exact <= 0.01
        assert result.evidence == "calibrated"
    assert (tmp_path / "a/plan.json").read_bytes() == (tmp_path / "b/plan.json").read_bytes()
    assert (tmp_path / "a/trials.jsonl").read_bytes() == (tmp_path / "b/trials.jsonl").read_bytes()


def test_run_folder_is_complete(tmp_path: Path) -> None:
    result = hetrl.tune("resnet18", "d1", budget=60, out=tmp_path / "run")
    folder = tmp_path / "run"
    names = {"plan.json", "result.json", "trials.jsonl", "config.json", "learning_curve.csv", "agent"}
    assert names <= {f.name for f in folder.iterdir()}
    assert load_plan(folder / "plan.json") == result.plan
    assert result.plan.expected is not None
    assert result.plan.expected.latency_ms == pytest.approx(result.latency_ms, rel=1e-5)
    header, trials = read_trials(folder / "trials.jsonl")
    assert [t.n for t in trials] == list(range(result.evaluations)) and len({t.key for t in trials}) == len(trials)
    assert header.device == "d1" and result.evaluations == 60
    curve = (folder / "learning_curve.csv").read_text().splitlines()
    assert len(curve) == 1 + result.evaluations
    weights = torch.load(folder / "agent" / "policy.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    with pytest.raises(RunError, match="holds a run already"):
        hetrl.tune("resnet18", "d1", budget=60, out=folder)


def test_frame_limit_is_kept_by_caps_window_or_slicing() -> None:
    free = hetrl.tune("vgg16", "d1", budget=10)
    limited = hetrl.tune("vgg16", "d1", budget=10, objective=Objective(max_frame_drop_rate=0.05))
    assert free.frame_drop_rate is not None and limited.frame_drop_rate is not None
    assert limited.frame_drop_rate <= 0.05 < free.frame_drop_rate
    plan = limited.plan
    assert plan.caps or plan.queue_window is not None or plan.kernel_slice_ms is not None
    assert limited.bound_ms is not None and limited.bound_ms <= limited.latency_ms


def test_accuracy_budget_decides_pruning() -> None:
    whole = hetrl.tune("vgg16", "d1", budget=10)
    pruned = hetrl.tune("vgg16", "d1", budget=10, objective=Objective(max_accuracy_drop_pct=5))
    assert not whole.plan.compression.prunes and whole.accuracy_drop_pct == 0
    assert pruned.plan.compression.prunes and 0 < pruned.accuracy_drop_pct <= 5
    assert pruned.latency_ms < whole.latency_ms


def test_learning_by_itself_gets_close_and_is_deterministic(tmp_path: Path) -> None:
    ppo = {"agent": "maskable-ppo", "seeds": False, "seed": 0}
    result = hetrl.tune("vgg16", "d1", budget=1000, out=tmp_path / "long", **ppo)
    assert result.gap_to_exact is not None and 0 <= result.gap_to_exact <= 0.1
    _header, trials = read_trials(tmp_path / "long/trials.jsonl")
    assert {t.by for t in trials} == {"reference", "maskable-ppo"} and len(trials) == 1000
    hetrl.tune("vgg16", "d1", budget=150, out=tmp_path / "short", **ppo)
    assert read_trials(tmp_path / "short/trials.jsonl")[1] == trials[:150]


def test_the_default_comes_close_within_a_hundred_evaluations() -> None:
    result = hetrl.tune("vgg16", "d1", budget=100, seeds=False)
    assert result.agent == "auto" and result.gap_to_exact is not None and 0 <= result.gap_to_exact <= 0.01


def _train(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hetrl.cli.main", "train", "--device", "d1", "--model", "resnet18"]
    return subprocess.Popen(
        [*command, "--budget", "200", "--no-seeds", "--json", *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _wait_for_trials(process: subprocess.Popen[bytes], path: Path, lines: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") > lines:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {lines} trials: {process.communicate()[1].decode()}")


def test_killed_run_resumes_without_losing_or_repeating_anything(tmp_path: Path) -> None:
    whole = _train(tmp_path, "--out", "whole")
    whole.communicate(timeout=300)
    assert whole.returncode == 0
    killed = _train(tmp_path, "--out", "killed")
    trials = tmp_path / "killed/trials.jsonl"
    _wait_for_trials(killed, trials, 60)
    killed.kill()
    killed.communicate()
    before = trials.read_bytes()
    with trials.open("ab") as file:
        file.write(b'{"n":17,"torn')  # a line that the crash cut off
    resumed = _train(tmp_path, "--resume", "killed")
    stdout, stderr = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, stderr.decode()
    after = trials.read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1])
    assert after == (tmp_path / "whole/trials.jsonl").read_bytes()
    assert (tmp_path / "killed/plan.json").read_bytes() == (tmp_path / "whole/plan.json").read_bytes()
    assert json.loads(stdout)["evaluations"] == 200


def test_interrupt_keeps_trials_and_writes_the_best_plan(tmp_path: Path) -> None:
    process = _train(tmp_path, "--out", "run", "--budget", "100000")
    _wait_for_trials(process, tmp_path / "run/trials.jsonl", 80)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr.decode()
    assert b"Traceback" not in stderr
    plan = load_plan(tmp_path / "run/plan.json")
    assert json.loads(stdout)["latency_ms"] == pytest.approx(plan.expected.latency_ms if plan.expected else 0, rel=1e-5)
    assert len(read_trials(tmp_path / "run/trials.jsonl")[1]) >= 80


def test_resume_refuses_another_problem(tmp_path: Path) -> None:
    hetrl.tune("resnet18", "d1", budget=5, out=tmp_path / "run")
    with pytest.raises(RunError, match="was run with seed 0"):
        hetrl.tune("resnet18", "d1", budget=5, seed=1, resume=tmp_path / "run")
    with pytest.raises(RunError, match="holds no run"):
        hetrl.tune("resnet18", "d1", budget=5, resume=tmp_path / "nothing")
    more = hetrl.tune("resnet18", "d1", budget=9, resume=tmp_path / "run")
    assert more.evaluations == 9


def test_failing_measurements_do_not_end_a_run() -> None:
    real = open_device("d1", hetrl.load_model("resnet18"))
    calls = []

    def flaky(plan: Plan, condition: Condition) -> Measurement:
        calls.append(plan.key)
        if len(plan.segments) > 1 and int(plan.key[:4], 16) % 10 < 3:  # the reference always works
            return Measurement.failed(Failure.TIMEOUT, "took too long")
        return real.measure(plan, condition)

    problem = Problem.on(MockDevice(real.spec, real.graph, flaky), Condition(), Objective())
    result = run_search(problem, Search("maskable-ppo", 60, 0), None, None, Silent())
    assert result.evaluations == 60
    assert result.exact_ms is None and result.gap_to_exact is None  # the optimum is the surrogate's, not the device's
    check_plan(result.plan, real.graph)


def test_budgets_that_nothing_keeps_are_infeasible() -> None:
    real = open_device("d1", hetrl.load_model("resnet18"))
    measured = MockDevice(real.spec, real.graph, lambda plan, condition: _dropping(real.measure(plan, condition)))
    problem = Problem.on(measured, Condition(), Objective(max_frame_drop_rate=0.05))
    with pytest.raises(Infeasible, match="keeps frame drops at most 5 %"):
        run_search(problem, Search("maskable-ppo", 20, 0), None, None, Silent())


def _dropping(measurement: Measurement) -> Measurement:
    import msgspec

    return msgspec.structs.replace(measurement, frame_drop_rate=0.5)


def test_agent_of_a_third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_plan(run: AgentRun, settings: NoSettings) -> None:
        run.ledger.measure(problem.setting_plan, run.name)

    class _Problem(Problem):
        @property
        def setting_plan(self) -> Plan:
            return self.hand_plans()[0][1]

    problem = _Problem.on(open_device("d1", hetrl.load_model("resnet18")), Condition(), Objective())
    method = Method("one plan", NoSettings, lambda budget: NoSettings(), one_plan)
    monkeypatch.setattr(plugins, "names", lambda group: ("one-plan",))
    monkeypatch.setattr(plugins, "load", lambda group, name, kind, command: method)
    result = run_search(problem, Search("one-plan", 10, 0, seeds=False), None, None, Silent())
    assert result.plan.made_by is not None and result.plan.made_by.search == "one-plan"
    assert result.evaluations == 2  # the reference and one plan


def test_resume_never_forgets_what_was_measured(tmp_path: Path) -> None:
    hetrl.tune("resnet18", "d1", budget=9, out=tmp_path / "run")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()}
    with pytest.raises(UsageError, match="already holds 9 evaluations"):
        hetrl.tune("resnet18", "d1", budget=3, resume=tmp_path / "run")
    with (
        TrialLog(tmp_path / "run/trials.jsonl", read_trials(tmp_path / "run/trials.jsonl")[0], append=True),
        pytest.raises(RunError, match="another hetrl is writing"),
    ):
        hetrl.tune("resnet18", "d1", budget=12, resume=tmp_path / "run")
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.is_file()} == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"decisions":[0,', b'"decisions":[999,'),
        (b'"decisions":[0,', b'"decisions":['),
        (b'"segments_ms":[', b'"segments_ms":[1.0,'),
        (b'"latency_ms":', b'"latency_ms":-'),
        (b'"by":"exact"', b'"by":"\xff\xfe"'),
    ],
)
def test_edited_trials_are_one_clear_error(old: bytes, new: bytes, tmp_path: Path) -> None:
    hetrl.tune("resnet18", "d1", budget=3, out=tmp_path / "run")
    trials = tmp_path / "run/trials.jsonl"
    assert old in trials.read_bytes()
    trials.write_bytes(trials.read_bytes().replace(old, new, 1))
    with pytest.raises(RunError, match="damaged"):
        hetrl.tune("resnet18", "d1", budget=5, resume=tmp_path / "run")


def test_a_model_without_work_leaves_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "nothing.onnx"
    onnx.save(onnx.parser.parse_model(NOTHING), path)
    with pytest.raises(UsageError, match="to place"):
        hetrl.tune(str(path), "d1", budget=5, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


NOTHING = """
<ir_version: 8, opset_import: ["" : 17]>
nothing (float[1,4] x) => (float[1,4] y) { y = Identity(x) }
"""


def test_a_budget_of_nothing_is_no_budget_left_away() -> None:
    with pytest.raises(UsageError, match="a budget of 0"):
        hetrl.tune("vgg16", "d1", budget=0)


def test_a_comparison_measures_each_plan_once_and_all_in_turns() -> None:
    asked: list[list[str]] = []

    class InTurns(MockDevice):
        def compare(self, plans: Sequence[Plan], condition: Condition) -> list[Measurement]:
            asked.append([plan.key for plan in plans])
            return super().compare(plans, condition)

    surrogate = SurrogateDevice(load_spec("d1"), resolve_model("resnet18"))
    device = InTurns(surrogate.spec, surrogate.graph, surrogate.measure)
    problem = Problem.on(device, Condition(), Objective())
    rows = rows_in_turns(problem, problem.candidates)
    assert [row.policy for row in rows] == [name for name, _ in problem.candidates]
    assert len(asked) == 1 and sorted(asked[0]) == sorted({plan.key for _, plan in problem.candidates})
    for (_, plan), row in zip(problem.candidates, rows, strict=True):
        assert row.latency_ms == surrogate.measure(plan, Condition()).latency_ms


def recorded_until(path: Path, then: Callable[[], Measurement]) -> tuple[Recorder, Problem]:
    """A device that answers three times, recorded, and a problem on it."""
    surrogate = SurrogateDevice(load_spec("d1"), resolve_model("resnet18"))
    left = 3

    def answer(plan: Plan, condition: Condition) -> Measurement:
        nonlocal left
        left -= 1
        return then() if left < 0 else surrogate.measure(plan, condition)

    device = Recorder(MockDevice(surrogate.spec, surrogate.graph, answer), path)
    return device, Problem.on(device, Condition(), Objective())


def test_a_comparison_keeps_its_rows_when_the_device_goes_away_and_a_recording_holds_them(tmp_path: Path) -> None:
    device, problem = recorded_until(tmp_path / "r.jsonl", lambda: Measurement.failed(Failure.LOST, "unplugged"))
    with device:
        rows = rows_in_turns(problem, problem.candidates)
    assert len({row.latency_ms for row in rows if row.latency_ms is not None}) >= 2
    assert any(row.error == "lost: unplugged" for row in rows)
    kept = read_recording(tmp_path / "r.jsonl")[1]
    assert len(kept) == 3 and all(record.measurement.ok for record in kept)


def test_a_comparison_that_is_interrupted_leaves_what_was_measured_in_the_recording(tmp_path: Path) -> None:
    def interrupt() -> Measurement:
        raise KeyboardInterrupt

    device, problem = recorded_until(tmp_path / "r.jsonl", interrupt)
    with device, pytest.raises(KeyboardInterrupt):
        rows_in_turns(problem, problem.candidates)
    assert len(read_recording(tmp_path / "r.jsonl")[1]) == 3
