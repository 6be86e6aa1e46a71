"""Environments on devices whose measurements fail, or vary."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import hetrl.envs.setting
from hetrl.condition import Condition
from hetrl.device_bridge.base import MockDevice, record
from hetrl.device_bridge.registry import open_device
from hetrl.envs.device_core import DeviceCore
from hetrl.envs.partition import PartitionEnv
from hetrl.envs.sb3 import make_sb3_vec_env
from hetrl.envs.setting import Setting
from hetrl.envs.vector import PartitionVectorEnv
from hetrl.errors import DeviceFailed, Infeasible
from hetrl.graph import OperatorGraph
from hetrl.measurement import Failure, Measurement
from hetrl.objective import Objective
from hetrl.plan import Evidence, Plan
from hetrl.zoo.resolve import resolve_model
from tests.tiny_models import save_tiny_cnn

ID = "hetrl.envs:Hetrl/PartitionOnDevice-v0"
SIZE = 4
Answer = Callable[[int], Measurement]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_cnn(tmp_path_factory.mktemp("models") / "tiny.onnx"))


class Phone(MockDevice):
    """Answers its n-th measurement with `answer(n)`; the reference is number 0."""

    def __init__(self, graph: OperatorGraph, answer: Answer) -> None:
        super().__init__(open_device("d1", graph).spec, graph, self._next)
        self.measured: list[Plan] = []
        self.closed = 0
        self._by_number = answer

    def _next(self, plan: Plan, condition: Condition) -> Measurement:
        self.measured.append(plan)
        return self._by_number(len(self.measured) - 1)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def phones(monkeypatch: pytest.MonkeyPatch) -> dict[str, Answer]:
    """What the devices of these names answer."""
    answers: dict[str, Answer] = {}

    def opened(address: str, graph: OperatorGraph, engine: str | None = None) -> Phone:
        return Phone(graph, answers[address])

    monkeypatch.setattr(hetrl.envs.setting, "open_device", opened)
    return answers


def worked(latency_ms: float) -> Measurement:
    return Measurement(evidence=Evidence.MEASURED, latency_ms=latency_ms, frame_drop_rate=0.0, peak_memory_mb=1.0)


def failing(kind: Failure, *numbers: int) -> Answer:
    """A phone that needs 10 ms for the reference and 5 ms for any plan, and fails those measurements."""

    def answer(number: int) -> Measurement:
        if number in numbers:
            return Measurement.failed(kind, "the cable is out")
        return worked(10.0 if number == 0 else 5.0)

    return answer


def finish(env: PartitionEnv) -> tuple[float, bool, bool, dict[str, Any]]:
    env.reset()
    return [step[1:] for step in (env.step(0) for _ in range(env.core.space.length))][-1]


def test_a_device_that_never_says_the_same_passes_under_its_id(tiny: str, phones: dict[str, Answer]) -> None:
    random = np.random.default_rng(0)
    phones["usb"] = lambda number: worked(random.uniform(5, 10))
    made = gym.make(ID, device="usb", model=tiny)
    assert made.spec is not None and made.spec.nondeterministic
    check_env(made.unwrapped)
    first, second = (finish(made.unwrapped) for _ in range(2))  # type: ignore[arg-type]
    assert first[3]["plan"] == second[3]["plan"] and first[3]["latency_ms"] != second[3]["latency_ms"]


def test_a_plan_that_fails_costs_four_references(tiny: str, phones: dict[str, Answer]) -> None:
    phones["usb"] = failing(Failure.TIMEOUT, 1)
    env = PartitionEnv("usb", tiny, render_mode="ansi")
    reward, terminated, truncated, info = finish(env)
    assert terminated and not truncated
    assert reward == -np.log(4)
    assert info["error"] == "timeout: the cable is out" and not info["keeps_budgets"]
    assert np.isnan(info["latency_ms"]) and info["cost_ms"] == 40.0 and info["plan"]
    assert "failed: the cable is out" in str(env.render())
    reward, *_, info = finish(env)
    assert reward == np.log(2) and "error" not in info


def test_a_lost_device_truncates_and_blames_no_plan(tiny: str, phones: dict[str, Answer]) -> None:
    phones["usb"] = failing(Failure.LOST, 1)
    env = PartitionEnv("usb", tiny)
    reward, terminated, truncated, info = finish(env)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["error"] == "lost: the cable is out"
    assert finish(env)[1:3] == (True, False)


def test_batches_tell_which_plans_were_lost(tiny: str, phones: dict[str, Answer]) -> None:
    def answer(number: int) -> Measurement:
        return failing(Failure.LOST, 2)(number) if number != 3 else Measurement.failed(Failure.CRASHED, "oh")

    phones["usb"] = answer
    envs = PartitionVectorEnv(SIZE, "usb", tiny)
    sb3 = make_sb3_vec_env(tiny, "usb", SIZE)
    envs.reset()
    sb3.reset()
    for _ in range(envs.core.space.length):
        _, rewards, terminated, truncated, infos = envs.step(np.zeros(SIZE, dtype=np.int64))
        _, sb3_rewards, dones, sb3_infos = sb3.step(np.zeros(SIZE, dtype=np.int64))
    np.testing.assert_array_equal(truncated, [False, True, False, False])
    np.testing.assert_array_equal(terminated, ~truncated)
    np.testing.assert_allclose(rewards, [np.log(2), 0, -np.log(4), np.log(2)])
    final = infos["final_info"]
    assert final["error"].tolist() == [None, "lost: the cable is out", "crashed: oh", None]
    assert final["_error"].tolist() == [False, True, True, False]
    assert np.isnan(final["latency_ms"]).tolist() == [False, True, True, False]
    np.testing.assert_allclose(sb3_rewards, rewards)
    assert dones.all() and [i["TimeLimit.truncated"] for i in sb3_infos] == truncated.tolist()


def test_a_reference_that_fails_ends_it_at_once(tiny: str, phones: dict[str, Answer]) -> None:
    phones["gone"] = failing(Failure.LOST, 0)
    phones["small"] = failing(Failure.OUT_OF_MEMORY, 0)
    with pytest.raises(DeviceFailed, match="the cable is out"):
        PartitionEnv("gone", tiny)
    with pytest.raises(Infeasible, match="the cable is out"):
        PartitionEnv("small", tiny)


def test_each_plan_is_measured_once_whatever_is_drawn(tiny: str, phones: dict[str, Answer]) -> None:
    phones["usb"] = failing(Failure.LOST)
    env = PartitionEnv("usb", tiny, render_mode="ansi")
    finish(env)
    assert "5.000 ms" in str(env.render())
    device = env.core.setting.device
    assert isinstance(device, Phone) and len(device.measured) == 2


def test_only_an_environment_that_opened_a_device_closes_it(tiny: str, phones: dict[str, Answer]) -> None:
    phones["usb"] = failing(Failure.LOST)
    for env in (PartitionEnv("usb", tiny), PartitionVectorEnv(2, "usb", tiny), make_sb3_vec_env(tiny, "usb", 2)):
        assert isinstance(env.core, DeviceCore)
        device = env.core.setting.device
        env.close()
        assert isinstance(device, Phone) and device.closed == 1
    device = Phone(resolve_model(tiny), failing(Failure.LOST))
    setting = Setting.on(device, Condition(), Objective())
    PartitionEnv.of(setting).close()
    PartitionVectorEnv.of(setting, 2).close()
    assert device.closed == 0 and len(device.measured) == 1  # the reference is shared


def test_a_recording_knows_what_it_saw(tiny: str) -> None:
    surrogate = open_device("d1", resolve_model(tiny))
    live = PartitionEnv.of(Setting.on(surrogate, Condition(), Objective()))
    reward, *_, info = finish(live)
    plans = [live.core.plan(0), live.core.setting.cpu_plan()]
    replayed = PartitionEnv.of(Setting.on(record(surrogate, plans, Condition()), Condition(), Objective()))
    again, *_, info_again = finish(replayed)
    assert again == reward and info_again["latency_ms"] == info["latency_ms"]
    replayed.reset()
    replayed.step(3)
    for _ in range(1, replayed.core.space.length):
        *_, unknown = replayed.step(np.flatnonzero(replayed.action_masks())[-1])
    assert unknown["error"].startswith("unknown_plan") and np.isnan(unknown["latency_ms"])
