"""The environment on real devices: this computer, and a board over ssh whose connection is cut."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker as sb3_checker
from gymnasium.utils.env_checker import check_env
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback

import hetrl.device_bridge.host.opening as opening
from hetrl.condition import Condition
from hetrl.device_bridge.ssh.channel import SshChannel
from hetrl.envs.partition import PartitionEnv
from hetrl.envs.sb3 import make_sb3_vec_env
from tests.daemons.processes import kill_tree
from tests.daemons.sshd import Sshd, running_sshd
from tests.host_help import HOST_ERROR, quick_host
from tests.tiny_models import save_tiny_cnn

ID = "hetrl.envs:Hetrl/Partition-v0"
STEPS = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path, None, None]:
    folder = tmp_path_factory.mktemp("real")
    save_tiny_cnn(folder / "tiny.onnx")
    with quick_host(folder):
        yield folder


@pytest.fixture(scope="module")
def host(folder: Path) -> Generator[PartitionEnv, None, None]:
    env = gym.make(ID, device="host", model=str(folder / "tiny.onnx"), render_mode="ansi", max_output_error=HOST_ERROR)
    yield env.unwrapped  # type: ignore[misc]
    env.close()


def finish(env: PartitionEnv, seed: int) -> tuple[float, bool, bool, dict[str, Any]]:
    """The last step of an episode of random legal decisions."""
    random = np.random.default_rng(seed)
    env.reset()
    while True:
        _, reward, terminated, truncated, info = env.step(random.choice(np.flatnonzero(env.action_masks())))
        if terminated or truncated:
            return float(reward), terminated, truncated, info


def ppo(env: Any) -> MaskablePPO:
    return MaskablePPO("MlpPolicy", env, n_steps=STEPS // 2, batch_size=STEPS // 2, n_epochs=1, device="cpu")


class Finished(BaseCallback):
    """Remembers how episodes ended; `at` is called once, when so many have."""

    def __init__(self, after: int = 0, at: Any = None) -> None:
        super().__init__()
        self.infos: list[dict[str, Any]] = []
        self._after, self._at = after, at

    def _on_step(self) -> bool:
        self.infos += [info for info in self.locals["infos"] if "latency_ms" in info]
        if self._at is not None and len(self.infos) >= self._after:
            self._at()
            self._at = None
        return True


def test_it_says_that_it_never_says_the_same_twice(host: PartitionEnv) -> None:
    assert host.spec is not None and host.spec.nondeterministic and host.spec.id == "Hetrl/Partition-v0"
    assert host.core.setting.condition == Condition(ui=None)
    first, second = finish(host, 0), finish(host, 0)
    assert first[3]["plan"] == second[3]["plan"] and first[3]["latency_ms"] != second[3]["latency_ms"]
    assert first[1:3] == (True, False) and "error" not in first[3]
    assert f"{second[3]['latency_ms']:.3f} ms" in str(host.render())


def test_a_surrogate_under_the_same_id_stays_deterministic(folder: Path) -> None:
    made = gym.make(ID, device="d1", model=str(folder / "tiny.onnx"))
    assert made.spec is not None and not made.spec.nondeterministic
    assert made.unwrapped.core.setting.condition == Condition()  # type: ignore[attr-defined]


def test_gymnasium_and_sb3_accept_it(host: PartitionEnv) -> None:
    check_env(host)
    sb3_checker.check_env(host)


def test_maskable_ppo_learns_on_this_computer(host: PartitionEnv) -> None:
    seen = Finished()
    ppo(host).learn(STEPS, callback=seen)
    assert len(seen.infos) == STEPS // host.core.space.length
    assert all(info["latency_ms"] > 0 for info in seen.infos)


def test_many_at_once_are_measured_one_by_one(folder: Path) -> None:
    envs = make_sb3_vec_env(str(folder / "tiny.onnx"), "host", 2, max_output_error=0.5)
    envs.reset()
    for _ in range(envs.core.space.length):
        _, rewards, dones, infos = envs.step(np.array([masks.argmax() for masks in envs.action_masks()]))
    assert dones.all() and np.isfinite(rewards).all() and all(info["latency_ms"] > 0 for info in infos)
    envs.close()


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Generator[Sshd, None, None]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def board(folder: Path, sshd: Sshd) -> Generator[PartitionEnv, None, None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HETRL_SSH_CONFIG", str(sshd.config))
        patch.setattr(opening, "SshChannel", partial(SshChannel, patience_s=1.0))
        address = f"ssh://{sshd.user}@127.0.0.1:{sshd.port}?python={sys.executable}"
        env = gym.make(ID, device=address, model=str(folder / "tiny.onnx"), max_output_error=HOST_ERROR)
        yield env.unwrapped  # type: ignore[misc]
        env.close()


def test_maskable_ppo_learns_though_the_connection_is_cut(board: PartitionEnv, sshd: Sshd) -> None:
    assert board.spec is not None and board.spec.nondeterministic
    cutter = threading.Timer(0.1, cut, [sshd])  # while the next episode ends, or just before
    seen = Finished(5, cutter.start)
    ppo(board).learn(STEPS, callback=seen)
    cutter.join()
    assert len(seen.infos) == STEPS // board.core.space.length
    assert all(info["latency_ms"] > 0 and "error" not in info for info in seen.infos)
    [note] = board.core.setting.device.notes
    assert "once" in note and ("lost" in note or "replaced" in note)


def test_a_board_that_is_lost_for_good_truncates(board: PartitionEnv, sshd: Sshd) -> None:
    assert finish(board, 1)[1:3] == (True, False)
    sshd.kill()
    try:
        reward, terminated, truncated, info = finish(board, 2)
    finally:
        sshd.start()
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["error"].startswith("lost: ") and "refuses the connection" in info["error"]
    assert finish(board, 3)[1:3] == (True, False)  # it is back


def cut(sshd: Sshd) -> None:
    """Kill the connections; the daemon itself takes new ones."""
    assert sshd.pid is not None
    for child in Path(f"/proc/{sshd.pid}/task/{sshd.pid}/children").read_text().split():
        kill_tree(int(child))
