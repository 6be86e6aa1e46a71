"""Many plans side by side: Gymnasium's vector form and stable-baselines3's give what one environment gives."""

from collections.abc import Generator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from hetrl.envs.partition import PartitionEnv
from hetrl.envs.sb3 import make_sb3_vec_env
from hetrl.envs.vector import PartitionVectorEnv
from hetrl.errors import UsageError
from hetrl.plan import encode_plan
from tests.tiny_models import save_tiny_cnn

ID = "hetrl.envs:Hetrl/Partition-v0"
SIZE = 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_cnn(tmp_path_factory.mktemp("models") / "tiny.onnx"))


@pytest.fixture(autouse=True)
def one_thread() -> Generator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_make_vec_takes_the_batched_environment(tiny: str) -> None:
    envs = gym.make_vec(ID, num_envs=64, device="d1", model=tiny)
    assert isinstance(envs, PartitionVectorEnv) and envs.num_envs == 64
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observations, infos = envs.reset(seed=0)
    assert observations in envs.observation_space and envs.np_random_seed == 0
    assert infos["action_mask"].shape == (64, envs.core.space.width)
    np.testing.assert_array_equal(infos["action_mask"], envs.action_masks())
    assert envs.spec is not None and gym.make_vec(gym.envs.registration.EnvSpec.from_json(envs.spec.to_json()))
    envs.close()
    envs.close()


def test_the_batched_environment_does_what_gymnasiums_loop_does(tiny: str) -> None:
    """All five answers of every step, over two episodes of actions that are not always legal."""

    def alone() -> PartitionEnv:
        return PartitionEnv("d1", tiny, max_accuracy_drop_pct=5.0, condition="cold,ui=none")

    looped: Any = SyncVectorEnv([alone] * SIZE, autoreset_mode=AutoresetMode.SAME_STEP)
    batched = PartitionVectorEnv(SIZE, "d1", tiny, max_accuracy_drop_pct=5.0, condition="cold,ui=none")
    assert batched.action_space == looped.action_space and batched.observation_space == looped.observation_space
    assert data_equivalence(batched.reset(seed=1), looped.reset(seed=1), exact=True)
    random = np.random.default_rng(1)
    for _ in range(2 * batched.core.space.length):
        actions = random.integers(0, batched.core.space.width, SIZE)
        mine, its = batched.step(actions), looped.step(actions)
        assert data_equivalence(mine[:4], its[:4], exact=True)
        finals, final = mine[4].get("final_info", {}), its[4].get("final_info", {})
        assert mine[4].keys() == its[4].keys()
        if final:
            plans = [encode_plan(batched.plan(d)).decode() for d in finals["decisions"]]
            assert plans == list(final.pop("plan")) and final.pop("_plan").all()
            assert np.isnan(finals["frame_drop_rate"]).all()
        for name, value in mine[4].items():
            if name != "final_info":
                assert data_equivalence(value, its[4][name], exact=True), name
        for name, value in finals.items():
            assert value.dtype == final[name].dtype
            np.testing.assert_array_equal(value, final[name], err_msg=name)


def test_the_same_actions_give_the_same_return_in_all_three_forms(tiny: str) -> None:
    one = PartitionEnv("d1", tiny)
    vector = PartitionVectorEnv(SIZE, "d1", tiny)
    sb3 = make_sb3_vec_env(tiny, "d1", SIZE)
    actions = np.random.default_rng(2).integers(0, vector.core.space.width, (vector.core.space.length, SIZE))
    vector.reset()
    sb3.reset()
    totals, sb3_totals = np.zeros(SIZE), np.zeros(SIZE)
    for row in actions:
        totals += vector.step(row)[1]
        sb3_totals += sb3.step(row)[1]
    for index, total in enumerate(totals):
        one.reset()
        assert sum(one.step(action)[1] for action in actions[:, index]) == total
    np.testing.assert_allclose(sb3_totals, totals, rtol=1e-6)


def test_wrappers_of_gymnasium_fit(tiny: str) -> None:
    envs = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec(ID, num_envs=3, device="d1", model=tiny))
    envs.reset(seed=0)
    envs.action_space.seed(0)
    length = envs.unwrapped.core.space.length  # type: ignore[attr-defined]
    for _ in range(length):
        *_, infos = envs.step(envs.action_space.sample())
    assert (infos["episode"]["l"] == length).all()


@pytest.mark.parametrize("actions", [[0, 0], [0.0, 0.0, 0.0], [0, 0, -1], [0, 0, 10**6]])
def test_actions_outside_the_space_are_mistakes(tiny: str, actions: list[float]) -> None:
    envs = PartitionVectorEnv(3, "d1", tiny)
    envs.reset()
    with pytest.raises(InvalidAction):
        envs.step(np.array(actions))


def test_no_environments_are_a_mistake(tiny: str) -> None:
    with pytest.raises(UsageError):
        PartitionVectorEnv(0, "d1", tiny)


def test_stable_baselines3_gets_what_a_plan_gave_and_its_masks(tiny: str) -> None:
    env = make_sb3_vec_env(tiny, "d1", SIZE, max_accuracy_drop_pct=5.0)
    assert is_masking_supported(env)
    env.reset()
    random = np.random.default_rng(0)
    for _ in range(env.core.space.length):
        masks = get_action_masks(env)
        np.testing.assert_array_equal(masks, env.action_masks())
        _, _, dones, infos = env.step(np.array([random.choice(np.flatnonzero(mask)) for mask in masks]))
    assert dones.all()
    for info in infos:
        assert "repaired" not in info and info["latency_ms"] > 0 and info["keeps_budgets"]
        assert info["terminal_observation"] in env.observation_space and not info["TimeLimit.truncated"]


class Repairs(BaseCallback):
    """Counts steps, and those whose action was illegal."""

    steps = repairs = 0

    def _on_step(self) -> bool:
        self.steps += len(self.locals["infos"])
        self.repairs += sum(info.get("repaired", False) for info in self.locals["infos"])
        return True


@pytest.mark.parametrize("form", ["gymnasium", "stable-baselines3"])
def test_maskable_ppo_learns_without_an_illegal_action(tiny: str, form: str) -> None:
    count = Repairs()
    env: Any = make_sb3_vec_env(tiny, "d1", 4) if form != "gymnasium" else gym.make(ID, device="d1", model=tiny)
    model = MaskablePPO("MlpPolicy", env, n_steps=66, batch_size=66, n_epochs=2, seed=0, device="cpu")
    model.learn(400, callback=count)
    assert count.steps >= 400 and not count.repairs


def test_plain_ppo_learns_with_repairs(tiny: str) -> None:
    count = Repairs()
    model = PPO("MlpPolicy", make_sb3_vec_env(tiny, "d1", 4), n_steps=66, batch_size=66, n_epochs=2, device="cpu")
    model.learn(400, callback=count)
    assert count.repairs
