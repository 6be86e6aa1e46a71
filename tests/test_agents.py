"""What hetrl's own agents add to stable-baselines3: settings, credit, imitation, exploration, masks; and `methods`."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hetrl
from hetrl.agents.base import AgentRun, Kind, Method
from hetrl.agents.credit import step_rewards, work_weights
from hetrl.agents.exploration import BoundedLogits, lean
from hetrl.agents.imitation import Elite, Episode
from hetrl.agents.ledger import Ledger
from hetrl.agents.settings import configured, find_method
from hetrl.cli.main import run as run_command
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.core import Finished
from hetrl.envs.space import CONTINUE, Granularity, PlanSpace
from hetrl.errors import HetrlError
from hetrl.objective import Objective
from hetrl.testing.methods import toy_device
from hetrl.testing.models import random_decisions
from tests.surrogate_help import D1
from tests.test_overlap import fork_graph
from tests.tiny_models import save_tiny_cnn

AGENTS = ("a2c", "dqn", "maskable-ppo", "ppo")


def _method(name: str) -> Method[msgspec.Struct]:
    return find_method(Kind.AGENT, name)


def _ledger(budget: int) -> Ledger:
    from hetrl.agents.problem import Problem
    from hetrl.condition import Condition

    problem = Problem.on(toy_device(), Condition(), Objective())
    ledger = Ledger(problem.space, problem.device, problem.condition, problem.objective, budget)
    ledger.reference_ms = problem.reference_ms
    return ledger


@pytest.mark.parametrize("agent", AGENTS)
def test_same_seed_same_bytes(agent: str, tmp_path: Path) -> None:
    model = str(save_tiny_cnn(tmp_path / "tiny.onnx"))
    for name in ("a", "b"):
        hetrl.tune(model, "d1", agent=agent, budget=40, seed=3, seeds=False, out=tmp_path / name)
    for file in ("trials.jsonl", "plan.json", "learning_curve.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    first, second = (torch.load(tmp_path / n / "agent/policy.pt", weights_only=True) for n in ("a", "b"))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("agent", AGENTS)
def test_budgets_below_one_rollout_are_kept(agent: str) -> None:
    ledger = _ledger(5)
    method = _method(agent)
    method.propose(AgentRun(agent, ledger, 0), method.for_budget(5))
    assert ledger.evaluations == 5


@pytest.mark.parametrize("agent", AGENTS)
def test_large_budgets_have_large_batches(agent: str) -> None:
    small, large = (msgspec.structs.asdict(_method(agent).for_budget(n)) for n in (1_000, 100_000))
    assert small["environments"] == 16 and large["environments"] >= 64
    if agent.endswith("ppo"):
        assert large["environments"] >= 256 and large["batch_size"] >= 2048


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"environments": 0}, "environments 0 is out of range, give 1 to"),
        ({"environments": 10**12}, "environments"),
        ({"environments": 2.5}, "environments"),
        ({"learning_rate": -1e-3}, "learning_rate -0.001 is out of range"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"hidden": "wide"}, "hidden"),
        ({"hidden": True}, "hidden"),
        ({"free": 1.5}, "free 1.5 is out of range, give 0 to 1"),
        ({"enviroments": 4}, "did you mean 'environments'"),
    ],
)
@pytest.mark.parametrize("agent", AGENTS)
def test_settings_that_make_no_sense_are_one_line(agent: str, given: dict[str, object], said: str) -> None:
    with pytest.raises(HetrlError) as caught:
        configured(_method(agent), agent, 100, given)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none.toml", None),
        ("broken.toml", "environments = "),
        ("twice.toml", "epochs = 1\nepochs = 2"),
        ("table.toml", "[environments]\nmany = 1"),
        ("list.json", "[1, 2]"),
        ("broken.json", '{"epochs": 1'),
        ("deep.json", '{"epochs": ' + 5000 * "["),
        ("binary.toml", "\0\1"),
        ("infinite.toml", "entropy = inf"),
        ("null.json", '{"epochs": null}'),
        ("unknown.toml", 'layers = "two"'),
        ("text.toml", 'learning_rate = "fast"'),
    ],
)
def test_bad_files_of_settings_are_one_line(
    name: str, text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = tmp_path / name, str(save_tiny_cnn(tmp_path / "tiny.onnx"))
    if text is not None:
        path.write_text(text)
    out = tmp_path / "run"
    asked = ["train", "--device", "d1", "--model", model, "--config", str(path), "--out", str(out), "--quiet"]
    assert run_command(asked) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and len(said) < 400
    assert not out.exists()


def test_a_file_of_settings_is_obeyed_and_resumed_with(tmp_path: Path) -> None:
    model = str(save_tiny_cnn(tmp_path / "tiny.onnx"))
    file = tmp_path / "few.json"
    file.write_text('{"environments": 2, "batch_size": 7, "epochs": 1}')
    hetrl.tune(model, "d1", settings=file, budget=9, seeds=False, out=tmp_path / "run")
    settings = json.loads((tmp_path / "run/config.json").read_text())["settings"]
    assert (settings["environments"], settings["batch_size"], settings["epochs"]) == (2, 7, 1)
    assert hetrl.tune(model, "d1", budget=12, seeds=False, resume=tmp_path / "run").evaluations == 12


@given(st.integers(0, 10**6), st.integers(1, 30))
def test_credit_adds_up_to_the_plans_cost(seed: int, size: int) -> None:
    ledger = _ledger(1000)
    taken = random_decisions(ledger.space, seed, size)
    outcomes = ledger.outcomes(taken, "test")
    cost_ms = ledger.objective.cost_ms(
        outcomes.latency_ms, outcomes.accuracy_drop_pct, outcomes.frame_drop_rate, ledger.reference_ms
    )
    weights = work_weights(ledger.space)
    rewards = step_rewards(ledger.space, weights, Finished(taken, outcomes, cost_ms), ledger.reference_ms)
    assert rewards.shape == taken.shape and (rewards[: len(ledger.space.globals)] == 0).all()
    np.testing.assert_allclose(rewards.sum(axis=0), -cost_ms / ledger.reference_ms, rtol=1e-6)


@given(st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 8)), min_size=1), st.integers(1, 5))
def test_the_elite_is_the_cheapest_distinct_plans(offered: list[tuple[float, int]], size: int) -> None:
    elite = Elite(size)
    cost_of = {plan: cost_ms for cost_ms, plan in reversed(offered)}  # equal plans cost the same
    for _, plan in offered:
        actions = np.full(3, len(elite.episodes))  # one plan can be decided in many ways
        elite.offer(Episode(bytes([plan]), cost_of[plan], np.zeros((3, 2), dtype=np.float32), actions, None))
    assert [e.cost_ms for e in elite.episodes] == sorted(cost_of.values())[:size]
    assert elite.lesson().actions.shape == (3 * min(size, len(cost_of)),)


@given(st.floats(0.001, 0.125), st.integers(5, 200), st.integers(2, 40))
def test_a_settled_policy_keeps_changing(share: float, decisions: int, choices: int) -> None:
    changes = share * decisions
    bounded = BoundedLogits.for_changes(changes, decisions, choices)
    logits = torch.full((1, choices), -1e9)
    logits[0, 0] = 1e9
    others = 1 - torch.softmax(bounded(logits), dim=1)[0, 0].item()
    assert 0.4 * changes <= others * decisions <= changes


@given(st.floats(0, 5), st.integers(2, 40))
def test_a_policy_leans_towards_doing_nothing(inertia: float, choices: int) -> None:
    action_net = torch.nn.Linear(4, choices)
    torch.nn.init.zeros_(action_net.weight)
    torch.nn.init.zeros_(action_net.bias)
    lean(action_net, inertia)
    chance = torch.softmax(action_net(torch.ones(1, 4)), dim=1)[0]
    assert torch.log(chance[0] / chance[1]).item() == pytest.approx(inertia, abs=1e-4)
    assert torch.allclose(chance[1:], chance[1])


def test_random_decisions_of_dqn_lean_likewise() -> None:
    shares = []
    for inertia in (0.0, 5.0):
        ledger = _ledger(64)
        method = _method("dqn")
        config = configured(method, "dqn", 64, {"random_plans": 1_000, "inertia": inertia, "environments": 64})
        method.propose(AgentRun("dqn", ledger, 0), config)
        taken = np.array([t.decisions for t in ledger.trials if t.decisions is not None])
        shares.append((taken[:, len(ledger.space.globals) + 1 :] == CONTINUE).mean())
    assert shares[1] > shares[0] + 0.1


def test_where_branches_may_run_side_by_side_both_general_granularities_are_tried() -> None:
    from hetrl.agents.sb3.learning import pinned

    space = PlanSpace(SurrogateDevice(D1, fork_graph()), Objective())
    assert space.branches and not _ledger(1).space.branches
    assert pinned(_ledger(1).space, 2) == [Granularity.INTRA_OP] * 2
    assert pinned(space, 3) == [Granularity.INTRA_OP, Granularity.INTER_OP, Granularity.INTRA_OP]


def test_dqn_takes_legal_decisions_alone() -> None:
    from hetrl.agents.sb3.masked_q import FORBIDDEN
    from hetrl.agents.sb3.vec_env import TrainingVecEnv
    from hetrl.envs.core import PartitionCore

    ledger = _ledger(10_000)
    method = _method("dqn")
    seen: list[int] = []
    original = PartitionCore.step

    def watched(self: PartitionCore, actions: np.ndarray) -> object:
        rewards, wrong, finished = original(self, actions)
        seen.append(int(wrong.sum()))
        return rewards, wrong, finished

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartitionCore, "step", watched)
        small = configured(method, "dqn", 60, {"random_plans": 16})
        ledger.budget = 60
        method.propose(AgentRun("dqn", ledger, 0), small)
    assert len(seen) > 3 * ledger.space.length and sum(seen) == 0  # at random first, then by value
    env = TrainingVecEnv(
        PartitionCore(ledger.space, ledger.objective, lambda t: ledger.outcomes(t, "x"), 1.0, 3), shows_masks=True
    )
    observation = env.reset()
    assert isinstance(observation, np.ndarray) and env.observation_space.contains(observation[0])
    assert (observation[:, -ledger.space.width :] == env.core.masks()).all() and FORBIDDEN < -1e6


def test_methods_lists_and_describes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["methods", "--kind", "agent", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["methods"]
    assert {*AGENTS} <= {method["name"] for method in listed} and {method["kind"] for method in listed} == {"agent"}
    assert run_command(["methods", "ppo", "--budget", "50000", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["settings"]["environments"] == 256 and said["defaults"]["environments"] == 16
    assert run_command(["methods", "ppo"]) == 0
    assert "learning_rate" in capsys.readouterr().out
    assert run_command(["methods", "tpo"]) == 2
    assert "did you mean 'tpe'" in capsys.readouterr().err
    assert run_command(["methods", "tpe", "--kind", "agent"]) == 2
