"""Every plan says whether it is optimal, how far it is at most from the optimum, or that nobody knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

import hetrl
from hetrl.agents.problem import Problem
from hetrl.agents.rows import bounded, certified, expected_of, measured_row
from hetrl.agents.tuner import Search, run_search
from hetrl.cli.main import run
from hetrl.condition import Condition
from hetrl.device_bridge.base import MockDevice
from hetrl.device_bridge.registry import open_device
from hetrl.errors import PlanError
from hetrl.objective import Objective
from hetrl.plan import encode_plan, load_plan
from hetrl.progress import Silent
from hetrl.report.tables import plan_lines, result_lines
from hetrl.results import Row
from tests.surrogate_help import COLD

ON_D1 = ("--device", "d1", "--model", "resnet18")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> hetrl.Result:
    return hetrl.tune("resnet18", "d1", budget=5, out=tmp_path_factory.mktemp("runs") / "run")


def told(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert run(list(words)) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("bound")]


def test_a_trained_plan_has_its_certificate_everywhere(
    trained: hetrl.Result, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = load_plan(str(trained.plan_path))
    assert plan.expected is not None and trained.bound_ms is not None
    assert plan.expected.bound_ms == plan.expected.latency_ms == pytest.approx(trained.bound_ms, rel=1e-5)
    assert plan.expected.gap == 0
    (line,) = [line for line in result_lines(trained) if line.startswith("bound")]
    assert line.startswith("bound      optimal: no plan of the search space is faster than ")
    assert told(capsys, "plan", "show", str(trained.plan_path)) == [line]
    assert told(capsys, "measure", *ON_D1, "--plan", str(trained.plan_path)) == [line]
    assert told(capsys, "measure", *ON_D1, "--policy", "exact") == [line]


def test_the_gap_is_in_the_documents(trained: hetrl.Result, capsys: pytest.CaptureFixture[str]) -> None:
    def document(*words: str) -> dict[str, Any]:
        assert run([*words, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    expected = document("plan", "show", str(trained.plan_path))["plan"]["expected"]
    assert expected["bound_ms"] == expected["latency_ms"]
    assert document("measure", *ON_D1, "--policy", "exact")["gap_to_exact"] == 0
    assert document("measure", *ON_D1, "--plan", str(trained.plan_path))["gap_to_exact"] == 0
    assert document("measure", *ON_D1, "--policy", "mace_cpu")["gap_to_exact"] is None


def test_what_has_no_certificate_says_so(trained: hetrl.Result, capsys: pytest.CaptureFixture[str]) -> None:
    none = "bound      no certificate: "
    (line,) = told(capsys, "measure", *ON_D1, "--policy", "mace_cpu")
    assert line.startswith(none) and "hetrl compare" in line
    bare = msgspec.structs.replace(trained.plan, expected=None)
    assert any(line.startswith(none) for line in plan_lines(bare))
    assert trained.plan.expected is not None
    unbounded = msgspec.structs.replace(trained.plan.expected, bound_ms=None)
    assert any(line.startswith(none) for line in plan_lines(msgspec.structs.replace(bare, expected=unbounded)))


def test_a_plan_file_that_does_something_else_now_keeps_no_certificate(
    trained: hetrl.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (hot,) = told(capsys, "measure", *ON_D1, "--plan", str(trained.plan_path), "--condition", "sigma2")
    assert "no certificate" in hot
    assert trained.plan.expected is not None
    promised = msgspec.structs.replace(trained.plan.expected, latency_ms=1.0, bound_ms=1.0)
    (tmp_path / "p.json").write_bytes(encode_plan(msgspec.structs.replace(trained.plan, expected=promised)))
    (lied,) = told(capsys, "measure", *ON_D1, "--plan", str(tmp_path / "p.json"))
    assert "no certificate" in lied


def test_a_plan_for_a_device_whose_optimum_is_not_known() -> None:
    real = open_device("d1", hetrl.load_model("resnet18"))
    problem = Problem.on(MockDevice(real.spec, real.graph, real.measure), Condition(), Objective())
    result = run_search(problem, Search("maskable-ppo", 3, 0), None, None, Silent())
    assert result.plan.expected is not None and result.plan.expected.bound_ms is None
    assert any("no certificate" in line for line in result_lines(result))


@pytest.fixture(scope="module")
def row() -> Row:
    problem = Problem.of("resnet18", "d1", engine=None, condition="cold", objective=Objective(), input_shapes=None)
    return measured_row("exact", problem.optimal_plan(), problem)


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-8, 1e-6, 1e-4, 0.1])
def test_six_digits_make_no_plan_look_optimal(row: Row, gap: float) -> None:
    assert row.latency_ms is not None
    promised = expected_of(row, COLD, row.latency_ms / (1 + gap))
    assert promised.gap is not None
    assert (promised.gap == 0) == (gap <= 1e-9)
    assert promised.gap >= gap * (1 - 1e-9) - 1e-9 and promised.gap <= gap + 3e-5
    assert certified(row, promised, COLD).gap_to_exact == promised.gap


def test_bounds_are_on_plans_that_keep_the_budgets(row: Row) -> None:
    assert row.latency_ms is not None
    broken = msgspec.structs.replace(row, keeps_budgets=False)
    assert bounded(broken, 1.0).gap_to_exact is None
    assert expected_of(broken, COLD, 1.0).bound_ms is None
    assert bounded(row, row.latency_ms / 2).gap_to_exact == pytest.approx(1.0)
    for unknown in (None, float("inf")):
        assert bounded(row, unknown) == row
        assert expected_of(row, COLD, unknown).bound_ms is None


@pytest.mark.parametrize("bound_ms", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bound_is_a_positive_number(row: Row, bound_ms: float) -> None:
    with pytest.raises(PlanError, match=r"expected\.bound_ms"):
        msgspec.structs.replace(expected_of(row, COLD, None), bound_ms=bound_ms)
