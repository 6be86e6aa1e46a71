"""The Gymnasium environment of one plan at a time."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import hetrl.envs
from hetrl.condition import parse_condition
from hetrl.device_bridge.registry import open_device
from hetrl.envs.partition import PartitionEnv
from hetrl.envs.setting import Setting
from hetrl.errors import UnknownName, UsageError
from hetrl.objective import Objective
from hetrl.plan import decode_plan, encode_plan
from hetrl.plan_check import check_plan
from hetrl.zoo.resolve import resolve_model
from tests.tiny_models import save_tiny_cnn

ID = "hetrl.envs:Hetrl/Partition-v0"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_cnn(tmp_path_factory.mktemp("models") / "tiny.onnx"))


@pytest.fixture(scope="module")
def env(tiny: str) -> PartitionEnv:
    """An environment that may prune, for tests that leave nothing behind."""
    return PartitionEnv("d1", tiny, max_accuracy_drop_pct=5.0)


def play(
    env: PartitionEnv, random: np.random.Generator, *, legal: bool = True
) -> tuple[list[int], float, dict[str, Any]]:
    """One episode of random actions; the actions, their return, and the last info."""
    env.reset()
    actions: list[int] = []
    info: dict[str, Any] = {}
    total, over = 0.0, False
    while not over:
        choices = np.flatnonzero(env.action_masks()) if legal else np.arange(env.core.space.width)
        actions.append(int(random.choice(choices)))
        _, reward, terminated, truncated, info = env.step(actions[-1])
        over = terminated or truncated
        total += reward
    return actions, total, info


def replay(env: PartitionEnv, actions: list[int]) -> tuple[float, dict[str, Any]]:
    env.reset()
    return [(reward, info) for _, reward, *_, info in map(env.step, actions)][-1]


def test_importing_the_package_imports_no_environment() -> None:
    heavy = "{'torch', 'onnx', 'stable_baselines3', 'hetrl.envs.space'}"
    run(f"import sys, hetrl.envs; assert not {heavy} & set(sys.modules), sys.modules.keys()")


def test_light_commands_leave_environments_alone() -> None:
    run("""
        import sys
        from hetrl.cli.main import main
        for command in "devices", "models", "policies":
            sys.argv = ["hetrl", command]
            try:
                main()
            except SystemExit as end:
                assert not end.code
            assert not {"hetrl.envs", "gymnasium"} & set(sys.modules), command
    """)


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("id_", [hetrl.envs.PARTITION, hetrl.envs.PARTITION_ON_DEVICE])
def test_gymnasium_finds_no_fault(id_: str, tiny: str) -> None:
    made = gym.make(id_, device="d1", model=tiny)
    check_env(made.unwrapped)
    made.close()


def test_stable_baselines3_finds_no_fault(tiny: str) -> None:
    sb3_check_env(gym.make(ID, device="d1", model=tiny, render_mode="ansi"))


def test_only_the_id_for_real_devices_is_nondeterministic() -> None:
    assert not gym.spec(hetrl.envs.PARTITION).nondeterministic
    assert gym.spec(hetrl.envs.PARTITION_ON_DEVICE).nondeterministic


def test_a_spec_survives_json(tiny: str) -> None:
    made = gym.make(
        ID, device="d1", model=tiny, engine="mace", condition="cold,ui=90hz:3ms", max_accuracy_drop_pct=2.0,
        max_frame_drop_rate=0.1, input_shapes={"data": [1, 3, 16, 16]},
    )  # fmt: skip
    assert made.spec is not None
    again = gym.make(EnvSpec.from_json(made.spec.to_json()))
    assert again.spec == made.spec
    actions, total, info = play(made.unwrapped, np.random.default_rng(0))  # type: ignore[arg-type]
    assert replay(again.unwrapped, actions)[0] == total  # type: ignore[arg-type]
    assert str(again.unwrapped.core.setting.condition) == "cold,ui=90hz:3ms"  # type: ignore[attr-defined]
    assert np.isfinite(info["frame_drop_rate"])


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"device": "d99"}, UnknownName),
        ({"model": "vgg61"}, UnknownName),
        ({"engine": "mice"}, UnknownName),
        ({"condition": "warm"}, UnknownName),
        ({"max_accuracy_drop_pct": -1}, UsageError),
        ({"max_frame_drop_rate": 3}, UsageError),
    ],
)
def test_mistakes_are_told_as_everywhere_else(tiny: str, wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        gym.make(ID, **({"device": "d1", "model": tiny} | wrong))


def test_a_seed_changes_samples_alone(env: PartitionEnv) -> None:
    observation, _ = env.reset(seed=3)
    assert env.np_random_seed == 3
    np.testing.assert_array_equal(observation, env.reset(seed=4)[0])
    env.action_space.seed(3)
    first = [env.action_space.sample() for _ in range(20)]
    env.action_space.seed(3)
    assert first == [env.action_space.sample() for _ in range(20)]


def test_each_decision_has_a_name_and_each_action_a_meaning(env: PartitionEnv) -> None:
    names = env.decision_names()
    assert len(names) == len(set(names)) == env.core.space.length
    assert names[:3] == ("granularity", "memory", "compression")
    assert names[-4:] == ("place conv1", "place conv2", "place pool", "place logits")
    env.reset()
    told: dict[str, list[str]] = {}
    for name in names:
        told[name] = [env.describe_action(a) for a in range(env.core.space.width)]
        legal = env.action_masks()
        assert "no such choice" not in np.array(told[name])[legal]
        env.step(3 if name == "granularity" else np.flatnonzero(legal)[0])
    assert told["granularity"][:5] == ["single", "subgraph", "inter_op", "intra_op", "no such choice"]
    assert told["place conv2"][0] == "same segment"
    assert any(" + " in words and words.endswith("by height") for words in told["place conv1"])
    assert env.describe_action(-1) == "no such choice"


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_legal_actions_make_a_valid_plan_of_just_that_latency(env: PartitionEnv, seed: int) -> None:
    _, total, info = play(env, np.random.default_rng(seed))
    plan = decode_plan(info["plan"].encode())
    assert encode_plan(plan).decode() == info["plan"]
    check_plan(plan, env.core.setting.graph)
    measured = env.core.setting.device.measure(plan, env.core.setting.condition)
    assert measured.latency_ms == info["latency_ms"]
    assert measured.frame_drop_rate == info["frame_drop_rate"]
    assert measured.peak_memory_mb == info["peak_memory_mb"]
    assert measured.energy_mj == info["energy_mj"]
    assert info["accuracy_drop_pct"] <= 5.0 and info["keeps_budgets"] and "error" not in info
    assert total == np.log(env.core.reference_ms / info["cost_ms"])


@settings(max_examples=60)
@given(data=st.data())
def test_any_action_is_taken_or_repaired(env: PartitionEnv, data: st.DataObject) -> None:
    observation, info = env.reset()
    terminated = False
    while not terminated:
        legal = info["action_mask"].astype(bool)
        assert legal.any() and observation in env.observation_space
        action = data.draw(st.integers(0, env.core.space.width - 1))
        step = env.core.step_number
        observation, _, terminated, truncated, info = env.step(action)
        assert not truncated
        assert info["repaired"] == (not legal[action])
        assert env.core._taken[step, 0] == (action if legal[action] else np.flatnonzero(legal)[0])
    check_plan(decode_plan(info["plan"].encode()), env.core.setting.graph)


def test_masks_are_of_one_mind(env: PartitionEnv) -> None:
    _, info = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(env.core.space.length - 1):
        mask = env.action_masks()
        assert mask.dtype == np.bool_ and info["action_mask"].dtype == np.int8
        np.testing.assert_array_equal(mask, info["action_mask"])
        *_, info = env.step(env.action_space.sample(info["action_mask"]))
        assert not info["repaired"]
    env.action_masks()[:] = False  # a copy
    assert env.action_masks().any()


def test_actions_outside_the_space_and_steps_after_the_end_are_mistakes(env: PartitionEnv) -> None:
    env.reset()
    for action in (-1, env.core.space.width, 0.5, [0]):
        with pytest.raises(InvalidAction):
            env.step(action)  # type: ignore[arg-type]
    play(env, np.random.default_rng(0))
    with pytest.raises(ResetNeeded):
        env.step(0)


def test_the_same_actions_give_the_same_return(env: PartitionEnv) -> None:
    actions, total, info = play(env, np.random.default_rng(5), legal=False)
    again, info_again = replay(env, actions)
    assert again == total and info_again["plan"] == info["plan"]


def test_an_accuracy_budget_opens_pruning(tiny: str, env: PartitionEnv) -> None:
    strict = PartitionEnv("d1", tiny)
    ratios = []
    for each in (strict, env):
        each.reset()
        for _ in range(each.decision_names().index("compression")):
            each.step(0)
        ratios.append([each.describe_action(int(a)) for a in np.flatnonzero(each.action_masks())])
    assert ratios[0] == ["none"] and ratios[1][:2] == ["none", "prune=0.3"]  # of 8 and 16 channels, in multiples of 4


def test_a_frame_budget_costs_plans_that_break_it(tmp_path: Path) -> None:
    model = str(save_tiny_cnn(tmp_path / "big.onnx", size=256))
    condition = "cold,ui=240hz:4ms"
    free, bound = (PartitionEnv("d1", model, condition=condition, max_frame_drop_rate=rate) for rate in (None, 0.0))
    for seed in range(50):
        actions, total, info = play(free, np.random.default_rng(seed))
        if info["frame_drop_rate"] > 0:
            break
    assert info["keeps_budgets"] and info["cost_ms"] == info["latency_ms"]
    limited, info = replay(bound, actions)
    assert limited < 0 and limited < total
    assert not info["keeps_budgets"] and info["cost_ms"] > bound.core.reference_ms


def test_without_a_ui_there_is_no_frame_drop_rate(tiny: str) -> None:
    _, _, info = play(PartitionEnv("d1", tiny, condition="cold,ui=none"), np.random.default_rng(0))
    assert np.isnan(info["frame_drop_rate"]) and info["keeps_budgets"]


def test_large_windows_stay_inside_the_observation_space(tmp_path: Path) -> None:
    env = PartitionEnv("d1", str(save_tiny_cnn(tmp_path / "wide.onnx", size=112)))
    observation, _ = env.reset()
    for _ in range(env.core.space.length):
        assert observation in env.observation_space
        observation, *_ = env.step(0)
    assert observation in env.observation_space


def test_an_open_device_stays_open(tiny: str) -> None:
    graph = resolve_model(tiny)
    setting = Setting.on(open_device("d1", graph), parse_condition("cold"), Objective())
    env = PartitionEnv.of(setting, render_mode="ansi")
    actions, total, _ = play(env, np.random.default_rng(1))
    assert env.spec is None and env.render_mode == "ansi"
    assert replay(PartitionEnv("d1", tiny), actions)[0] == total
    env.close()
    env.close()
