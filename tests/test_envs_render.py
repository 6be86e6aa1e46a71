"""What the environment draws."""

import sys
import warnings
from typing import Any

import numpy as np
import pytest

from hetrl.envs.partition import PartitionEnv
from hetrl.errors import MissingExtra
from tests.tiny_models import save_tiny_cnn


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_cnn(tmp_path_factory.mktemp("models") / "tiny.onnx"))


def finish(env: PartitionEnv) -> dict[str, Any]:
    """Complete a plan; its last info."""
    env.reset()
    return [env.step(0)[-1] for _ in range(env.core.space.length)][-1]


def test_text_shows_decisions_and_then_the_timeline(tiny: str) -> None:
    env = PartitionEnv("d1", tiny, render_mode="ansi")
    env.reset()
    env.step(3)
    before = str(env.render())
    assert "decision 1 of" in before and "granularity" in before and "intra_op" in before and "?" in before
    info = finish(env)
    after = str(env.render())
    assert "?" not in after and f"{info['latency_ms']:.3f} ms" in after and "keeps the budgets" in after
    assert "|" in after.splitlines()[-2]  # the last processor's bar


def test_images_are_images(tiny: str) -> None:
    env = PartitionEnv("d1", tiny, render_mode="rgb_array")
    env.reset()
    empty = env.render()
    finish(env)
    full = env.render()
    images = []
    for image in (empty, full):
        assert isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == (240, 800, 3)
        images.append(image.tobytes())
    assert images[0] != images[1]


def test_images_need_an_extra(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    env = PartitionEnv("d1", tiny, render_mode="rgb_array")
    env.reset()
    with pytest.raises(MissingExtra, match=r"hetrl\[plots\]"):
        env.render()


def test_rendering_without_a_mode_warns(tiny: str) -> None:
    env = PartitionEnv("d1", tiny)
    env.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert env.render() is None
    assert "render_mode" in str(caught[0].message)
