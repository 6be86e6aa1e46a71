"""Compiled code against numpy, bit for bit: the totals of random schedules, and the environment on top of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetrl.condition import Condition, Ui, parse_condition
from hetrl.device_bridge.spec import Engine, load_spec
from hetrl.device_bridge.surrogate import accelerate
from hetrl.device_bridge.surrogate.accelerate import PACE, PATIENCE_S, Totals, totals, totals_by_numpy
from hetrl.device_bridge.surrogate.cost_model import CostModel, Schedules
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.segments import Segments, segments_by_numpy
from hetrl.device_bridge.surrogate.tables import MEMORIES, Option, engine_options
from hetrl.envs.evaluate import Outcomes, evaluate
from hetrl.envs.partition import PartitionEnv
from hetrl.envs.space import PlanSpace
from hetrl.envs.vector import PartitionVectorEnv
from hetrl.objective import Objective
from hetrl.plan import Axis
from hetrl.testing.models import random_decisions, random_graph
from tests.tiny_models import save_tiny_cnn

numba = pytest.importorskip("numba")
SETS = (("d1", "mace"), ("d5", "mace"), ("d1", "tflite"), ("d4", "ncnn"), ("d1", "mace_dsp"))
CONDITIONS = ("cold", "sigma2,competitors=2", "sigma3,ui=120hz:3ms", "sigma4", "cold,suspended=0.3,ui=none")
COUNT = 30  # schedules per random model
seeds = st.integers(0, 10**6)


@pytest.fixture(autouse=True)
def as_it_was() -> Generator[None]:
    before = PACE.numpy_s
    yield
    PACE.numpy_s = before


def options_of(engine: Engine) -> tuple[Option, ...]:
    """Everything that an engine offers, and branches of two and of all of its processors."""
    host = next(i for i, p in enumerate(engine.processors) if p.unit == "cpu")
    others = [i for i in range(len(engine.processors)) if i != host]
    options = [*engine_options(engine, (30, 50, 80)), Option((others[0], host), Axis.BRANCHES, (75, 25))]
    if len(others) == 2:
        options.append(Option((*others, host), Axis.BRANCHES, (50, 25, 25)))
    return tuple(options)


@cache
def model_of(where: tuple[str, str], seed: int, condition: Condition) -> CostModel:
    device = SurrogateDevice(load_spec(where[0]), random_graph(seed, 1 + seed % 9), where[1])
    return device.cost_model(options=options_of(device.engine), condition=condition)


def random_schedules(model: CostModel, seed: int, count: int = COUNT) -> Schedules:
    """Any options, whether they are possible or not; a memory type and a window of each segment's own."""
    draw = np.random.default_rng(seed)
    n, options = len(model.tables.workload.items), len(model.tables.options)
    codes = np.where(draw.random((n, count)) < draw.random(count), 0, draw.integers(1, 1 + options, (n, count)))
    # Most are possible, for the rest stays infinite.
    possible = [1 + np.flatnonzero(row) for row in model.tables.possible]
    likely = np.array([draw.choice(row, count) for row in possible])
    codes = np.where((codes > 0) & (draw.random(codes.shape) < 0.97), likely, codes)
    codes[0] = np.where(codes[0] > 0, codes[0], likely[0])
    found = segments_by_numpy(codes)
    memory = draw.integers(0, len(MEMORIES), (n, count))
    return Schedules(
        *found,
        memory=np.take_along_axis(memory, found.start, axis=0),
        duty=draw.choice([1.0, 0.75, 0.3], (len(model.tables.engine.processors), count)),
        queue_window=draw.choice([16, 4, 3, 1], count),
        slice_ms=draw.choice([np.inf, 4.0, 1.0, 0.05], count),
        overlap=draw.random(count) < 0.3,
    )


def members(batch: Schedules, which: list[int]) -> Schedules:
    return Schedules(*(getattr(batch, f.name)[..., which] for f in fields(Schedules)))


def assert_same(found: Totals | Outcomes, expected: Totals | Outcomes) -> None:
    for field in fields(expected):
        np.testing.assert_array_equal(
            getattr(found, field.name), getattr(expected, field.name), err_msg=field.name, strict=True
        )


@given(st.sampled_from(SETS), seeds, st.sampled_from(CONDITIONS))
@settings(max_examples=150)
def test_compiled_totals_are_those_of_numpy_to_the_last_bit(where: tuple[str, str], seed: int, state: str) -> None:
    condition = parse_condition(state)
    model = model_of(where, seed % 30, replace_ui(condition))
    batch = random_schedules(model, seed)
    expected = totals_by_numpy(model, batch, condition.ui)
    assert_same(accelerate.totals_compiled(model, batch, condition.ui), expected)
    assert np.isfinite(expected.latency_ms).any()
    assert np.isnan(expected.frame_drop_rate).all() == (condition.ui is None)


def replace_ui(condition: Condition) -> Condition:
    """The condition as a key: cost models do not depend on the user interface."""
    return Condition(condition.state, condition.competitors, condition.cache_hit, condition.suspended)


@given(st.sampled_from(SETS), seeds, st.booleans())
@settings(max_examples=30)
def test_a_batch_gives_each_member_what_it_gets_alone(where: tuple[str, str], seed: int, fast: bool) -> None:
    model = model_of(where, seed % 30, Condition())
    batch = random_schedules(model, seed)
    evaluated = accelerate.totals_compiled if fast else totals_by_numpy
    together = evaluated(model, batch, Ui())
    for index in range(0, COUNT, 7):
        alone = evaluated(model, members(batch, [index]), Ui())
        assert_same(alone, Totals(*(getattr(together, f.name)[..., [index]] for f in fields(Totals))))


@given(seeds, st.integers(1, 40), st.integers(1, 9))
@settings(max_examples=50)
def test_segments_are_the_runs_of_codes(seed: int, n: int, size: int) -> None:
    draw = np.random.default_rng(seed)
    codes = np.where(draw.random((n, size)) < draw.random(), 0, draw.integers(1, 40, (n, size)))
    codes[0] = draw.integers(1, 40, size)
    PACE.numpy_s = 0.0
    slow = segments_by_numpy(codes)
    from hetrl.device_bridge.surrogate.segments import segments_compiled

    for found in (slow, segments_compiled(codes)):
        for b in range(size):
            begins = [k for k in range(n) if codes[k, b]]
            for begin, after in zip(begins, [*begins[1:], n], strict=True):
                run = slice(begin, after)
                for values, expected in zip(found, (codes[begin, b] - 1, begin, after - 1), strict=True):
                    assert (values[run, b] == expected).all(), Segments._fields
    for one, other in zip(slow, segments_compiled(codes), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_arrays_in_any_memory_layout_are_taken() -> None:
    model = model_of(("d1", "mace"), 8, Condition())
    batch = random_schedules(model, 0)
    frozen = {f.name: np.array(getattr(batch, f.name), order="C") for f in fields(Schedules)}
    for values in frozen.values():
        values.setflags(write=False)
    assert_same(accelerate.totals_compiled(model, Schedules(**frozen), Ui()), totals_by_numpy(model, batch, Ui()))


@pytest.mark.parametrize("wrong", ["option", "memory", "end"])
def test_what_the_tables_do_not_hold_is_an_index_error_as_in_numpy(wrong: str) -> None:
    model = model_of(("d1", "mace"), 8, Condition())
    batch = random_schedules(model, 0)
    bad = replace(batch, **{wrong: getattr(batch, wrong) + 1000})
    with pytest.raises(IndexError):
        accelerate.totals_compiled(model, bad, Ui())


@pytest.mark.parametrize("budget", [0.0, 5.0])
def test_evaluation_is_the_same_with_and_without(budget: float) -> None:
    space = PlanSpace(SurrogateDevice(load_spec("d1"), random_graph(7, 8)), Objective(max_accuracy_drop_pct=budget))
    taken = random_decisions(space, 0, 1500)  # more than go through at a time
    found = []
    for spent in (0.0, PATIENCE_S + 1):
        PACE.numpy_s = spent
        found.append(evaluate(space, space.device, Condition(), taken))
        alone = evaluate(space, space.device, Condition(), taken[:, 5:6])
        assert alone.at(0) == found[-1].at(5)
    assert_same(found[1], found[0])
    assert np.isfinite(found[0].latency_ms).all()


@pytest.mark.parametrize("spent", [-1e9, 1e9])
def test_one_environment_returns_what_a_batch_of_them_does(
    tmp_path_factory: pytest.TempPathFactory, spent: float
) -> None:
    model = str(save_tiny_cnn(tmp_path_factory.mktemp("m") / "tiny.onnx"))
    PACE.numpy_s = spent
    one = PartitionEnv("d1", model, max_accuracy_drop_pct=5.0)
    many = PartitionVectorEnv(40, "d1", model, max_accuracy_drop_pct=5.0)
    actions = np.random.default_rng(2).integers(0, many.core.space.width, (many.core.space.length, 40))
    many.reset()
    returns = sum(many.step(row)[1] for row in actions)
    for index in range(40):
        one.reset()
        assert sum(one.step(action)[1] for action in actions[:, index]) == returns[index]


def test_numpy_works_until_it_has_taken_its_time_and_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(("d1", "mace"), 8, Condition())
    batch = random_schedules(model, 0)
    asked: list[str] = []

    def compiled(model: CostModel, batch: Schedules, ui: Ui | None) -> Totals:
        asked.append("compiled")
        return totals_by_numpy(model, batch, ui)

    monkeypatch.setattr(accelerate, "totals_compiled", compiled)
    PACE.numpy_s = 0.0
    expected = totals(model, batch, Ui())
    assert 0 < PACE.numpy_s < PATIENCE_S and not asked
    PACE.numpy_s = PATIENCE_S + 1
    assert_same(totals(model, batch, Ui()), expected)
    assert asked == ["compiled"]
    monkeypatch.setattr(accelerate, "has_compiled", lambda: False)
    assert_same(totals(model, batch, Ui()), expected)
    assert asked == ["compiled"]


def test_who_evaluates_few_plans_imports_no_numba(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = save_tiny_cnn(tmp_path_factory.mktemp("m") / "tiny.onnx")
    code = f"""
import sys
import numpy as np
from hetrl.envs.vector import PartitionVectorEnv
env = PartitionVectorEnv(60, "d1", {str(model)!r})
env.reset()
for _ in range(env.core.space.length):
    env.step(np.zeros(60, dtype=np.int64))
assert "numba" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
