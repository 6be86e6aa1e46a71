"""The batched environment's state, kept step by step, against what the decisions so far say."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetrl.condition import Condition
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.core import Floats, PartitionCore
from hetrl.envs.device_core import DeviceCore
from hetrl.envs.evaluate import evaluate
from hetrl.envs.features import dynamic_size, static_features
from hetrl.envs.setting import Setting
from hetrl.envs.space import CONTINUE, Granularity
from hetrl.objective import Objective
from hetrl.testing.models import random_graph
from tests.surrogate_help import chain_graph

SETS = (("d1", "mace"), ("d1", "tflite"), ("d4", "ncnn"))
SIZE = 12


@cache
def setting_of(where: tuple[str, str], seed: int) -> Setting:
    graph = chain_graph(40) if seed == 0 else random_graph(seed, 1 + seed % 9)  # the first is longer than any chain
    objective = Objective(max_accuracy_drop_pct=5.0)
    return Setting.on(SurrogateDevice(load_spec(where[0]), graph, where[1]), Condition(), objective)


def seen(core: PartitionCore, taken: np.ndarray, step: int) -> Floats:
    """What is observed of the decisions before `step`, of one plan after the other."""
    space = core.space
    dynamic = np.zeros((core.size, dynamic_size(space)), dtype=np.float32)
    options = sum(len(d.choices) for d in space.globals)
    for b in range(core.size):
        at = 0
        for number, decision in enumerate(space.globals[:step]):
            dynamic[b, at + taken[number, b]] = 1.0
            at += len(decision.choices)
        codes = list(taken[len(space.globals) : step, b])
        begins = [k for k, code in enumerate(codes) if code != CONTINUE]
        if begins:
            dynamic[b, options + codes[begins[-1]] - 1] = 1.0
            dynamic[b, -1] = (len(codes) - begins[-1]) / space.groups
    static = static_features(space)[step]
    return np.hstack([np.broadcast_to(static, (core.size, len(static))), dynamic])


@given(st.sampled_from(SETS), st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60)
def test_masks_and_observations_follow_from_the_decisions(
    where: tuple[str, str], seed: int, legal: float, goes_on: float
) -> None:
    setting = setting_of(where, seed % 8)
    core, draw = DeviceCore(setting, SIZE), np.random.default_rng(seed)
    for _ in range(2):
        observation, taken = core.reset(), np.zeros((core.space.length, SIZE), dtype=np.int64)
        for step in range(core.space.length):
            np.testing.assert_array_equal(core.masks(), core.space.mask(step, taken).T)
            np.testing.assert_array_equal(observation, seen(core, taken, step), strict=True)
            weights = draw.random(core.masks().shape) * np.where(draw.random((SIZE, 1)) < legal, core.masks(), 1)
            actions = weights.argmax(axis=1)
            if step > len(core.space.globals):
                actions[draw.random(SIZE) < goes_on] = CONTINUE
            allowed = core.masks()[np.arange(SIZE), actions]
            taken[step] = np.where(allowed, actions, core.masks().argmax(axis=1))
            before = observation.copy()
            _, repaired, finished = core.step(actions)
            np.testing.assert_array_equal(repaired, ~allowed)
            np.testing.assert_array_equal(observation, before)  # what was handed out stays as it was
            observation = core.observe()
        assert finished is not None
        np.testing.assert_array_equal(finished.taken, taken)
        assert all(core.space.is_legal(taken[:, b]) for b in range(SIZE))


def test_pinned_plans_do_not_choose_their_granularity() -> None:
    setting = setting_of(("d1", "mace"), 3)

    def outcomes(taken: np.ndarray):
        return evaluate(setting.space, setting.device, setting.condition, taken)

    pinned = [Granularity.INTRA_OP, Granularity.SUBGRAPH, Granularity.INTRA_OP, Granularity.INTER_OP]
    core = PartitionCore(setting.space, setting.objective, outcomes, setting.reference_ms, 6, pinned=pinned)
    for _ in range(2):
        core.reset()
        assert core.masks()[:4].sum(axis=1) == pytest.approx(1) and core.masks()[range(4), [3, 1, 3, 2]].all()
        assert core.masks()[4:, :4].all() and not core.masks()[4:, 4:].any()
