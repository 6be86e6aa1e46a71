"""All agents and samplers pass the suite that hetrl ships; methods with a defect do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetrl import plugins
from hetrl.agents.base import AgentRun, Kind, Method, NoSettings
from hetrl.agents.settings import find_method
from hetrl.cli.main import run as run_command
from hetrl.condition import Condition
from hetrl.testing.methods import MethodConformance
from hetrl.testing.models import random_decisions
from tests.tiny_models import save_tiny_cnn

REGISTERED = [(kind, name) for kind in Kind for name in plugins.names(kind.group)]


@pytest.mark.parametrize("registered", REGISTERED, ids=[f"{kind}:{name}" for kind, name in REGISTERED])
class TestRegistered(MethodConformance):
    @pytest.fixture
    def method(self, registered: tuple[Kind, str]) -> Method[Any]:
        if registered == (Kind.SAMPLER, "random"):
            self.budget = 2000  # it learns nothing: chance needs some thousand plans
        if registered == (Kind.SAMPLER, "gp"):
            self.some = 12  # each proposal takes it about half a second
        return find_method(*registered)


def _method(propose: Callable[[AgentRun, NoSettings], None]) -> Method[NoSettings]:
    return Method("under test", NoSettings, lambda budget: NoSettings(), propose)


def _honest(run: AgentRun, settings: NoSettings) -> None:
    """Random legal plans, until none was new for a while."""
    seed, idle = run.seed, 0
    while not run.ledger.exhausted and idle < 100:
        before = run.ledger.evaluations
        run.ledger.outcomes(random_decisions(run.ledger.space, seed, 16), run.name)
        seed, idle = seed + 1, idle + 1 if run.ledger.evaluations == before else 0


def _lazy(run: AgentRun, settings: NoSettings) -> None:
    pass


def _unseeded(run: AgentRun, settings: NoSettings) -> None:
    run.seed = int(np.random.default_rng().integers(2**31))
    _honest(run, settings)


def _lawless(run: AgentRun, settings: NoSettings) -> None:
    taken = random_decisions(run.ledger.space, 0, 40)
    taken[len(run.ledger.space.globals)] = 0  # the first fusion group continues a segment that there is not
    run.ledger.outcomes(taken, run.name)


def _cheating(run: AgentRun, settings: NoSettings) -> None:
    for plan in random_decisions(run.ledger.space, 0, 8).T:
        run.ledger.device.measure(run.ledger.space.plan(plan), Condition())
    _honest(run, settings)


def _stubborn(run: AgentRun, settings: NoSettings) -> None:
    while not run.ledger.exhausted:
        run.ledger.outcomes(random_decisions(run.ledger.space, 0, 400), run.name)


def _impatient(run: AgentRun, settings: NoSettings) -> None:
    ledger, seed = run.ledger, 0
    while not ledger.exhausted and ledger.trials[-1].latency_ms is not None:
        ledger.outcomes(random_decisions(ledger.space, seed, 1), run.name)
        seed += 1


SUITE = [name for name in dir(MethodConformance) if name.startswith("test_")]


@pytest.mark.parametrize("test", SUITE)
def test_an_honest_method_passes(test: str, tmp_path: Path) -> None:
    _run(test, _method(_honest), tmp_path)


@pytest.mark.parametrize(
    ("propose", "test"),
    [
        (_lazy, "test_learns_the_toy_chain"),
        (_lazy, "test_spends_the_smallest_budgets"),
        (_unseeded, "test_same_seed_same_trials"),
        (_unseeded, "test_goes_on_from_any_of_its_trials"),
        (_lawless, "test_keeps_masks_and_budgets"),
        (_cheating, "test_keeps_masks_and_budgets"),
        (_stubborn, "test_ends_when_nothing_new_is_left"),
        (_impatient, "test_survives_failed_measurements"),
    ],
)
def test_the_suite_finds_defects(propose: Callable[[AgentRun, NoSettings], None], test: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        _run(test, _method(propose), tmp_path)


def _run(test: str, method: Method[Any], folder: Path) -> None:
    arguments: dict[str, Any] = {} if test == "test_describes_itself" else {"tmp_path": folder}
    if "smallest" in test:
        arguments["budget"] = 2
    getattr(MethodConformance(), test)(method, **arguments)


ACME = """
import msgspec
from hetrl.agents.base import Method
from hetrl.testing.models import random_decisions

class Config(msgspec.Struct, frozen=True):
    batch: int = 4

def propose(run, config):
    seed = run.seed
    while not run.ledger.exhausted:
        run.ledger.outcomes(random_decisions(run.ledger.space, seed, config.batch), run.name)
        seed += 1

acme = Method("plans of chance", Config, lambda budget: Config(), propose)
"""


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A distribution of a third party, as pip lays it out, which registers an agent."""
    site = tmp_path / "site"
    about = site / "acme_agents-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "acme_agents.py").write_text(ACME)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-agents\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[hetrl.agents]\nacme = acme_agents:acme\n")
    monkeypatch.syspath_prepend(str(site))
    return "acme"


def test_an_agent_of_a_third_party_trains(acme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(save_tiny_cnn(tmp_path / "tiny.onnx"))
    (tmp_path / "acme.toml").write_text("batch = 3\n")
    out = tmp_path / "run"
    common = ["--device", "d1", "--model", model, "--agent", acme, "--no-seeds", "--quiet", "--json"]
    config = ["--config", str(tmp_path / "acme.toml")]
    assert run_command(["train", *common, *config, "--budget", "20", "--out", str(out)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["agent"] == "acme" and said["evaluations"] == 20
    assert json.loads((out / "config.json").read_text())["settings"] == {"batch": 3}
    trials = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()[1:]]
    assert [trial["by"] for trial in trials] == ["reference"] + 19 * ["acme"]
    assert run_command(["methods", "--json"]) == 0
    listed = {method["name"]: method for method in json.loads(capsys.readouterr().out)["methods"]}
    assert listed["acme"] == {"name": "acme", "kind": "agent", "summary": "plans of chance"}
