"""Conditions: the grammar, the closed forms, and how wrong they are on the study's Table 3."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hetrl
from hetrl.agents.policies import find_policy
from hetrl.calibration.conditions import NAMES, Profile, errors, fit, leave_one_model_out, profiles
from hetrl.condition import STATES, Condition, Ui, parse_condition
from hetrl.device_bridge.registry import open_device
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.conditions import study_effects
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.errors import UnknownName, UsageError

conditions = st.builds(
    Condition,
    state=st.sampled_from(STATES),
    competitors=st.integers(0, 16),
    cache_hit=st.none() | st.sampled_from([0.0, 0.2, 0.5, 1.0]),
    suspended=st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    ui=st.sampled_from([None, Ui(), Ui(90, 3), Ui(120, 2.5)]),
)


@given(conditions)
def test_text_and_value_are_the_same_thing(condition: Condition) -> None:
    assert parse_condition(str(condition)) == condition


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("sigma5", "did you mean 'sigma"),
        ("cold,sigma1", "two states"),
        ("competitors=2,competitors=3", "twice"),
        ("competitors=-1", "competitors"),
        ("competitors=99", "not in 0 to 16"),
        ("competitors=1.5", "competitors"),
        ("cache_hit=2", "not in 0 to 1"),
        ("cache_hit=nan", "cache_hit"),
        ("suspended=x", "suspended"),
        ("competitor=2", "did you mean 'competitors'"),
        ("ui=60hz", "user interface"),
        ("ui=60hz:20ms", "does not fit"),
        ("", "unknown condition"),
    ],
)
def test_bad_conditions_are_one_clear_error(text: str, word: str) -> None:
    with pytest.raises((UsageError, UnknownName)) as caught:
        parse_condition(text)
    assert word in str(caught.value)


@pytest.fixture(scope="module")
def device() -> SurrogateDevice:
    opened = open_device("d1", hetrl.load_model("resnet18"))
    assert isinstance(opened, SurrogateDevice)
    return opened


def latency_ms(policy: str, condition: str) -> float:
    row = hetrl.measure("resnet18", "d1", policy=policy, condition=condition)
    assert row.latency_ms is not None
    return row.latency_ms


@pytest.mark.parametrize("policy", ["mace_cpu", "mace_gpu_image", "codl_image", "mulayer", "exact"])
def test_worse_conditions_are_slower(policy: str) -> None:
    ladder = ["cold", "sigma0", "sigma1", "sigma2", "sigma2,competitors=1", "sigma2,competitors=2,cache_hit=0.2"]
    times = [latency_ms(policy, c) for c in ladder]
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(times)), times
    assert latency_ms(policy, "cache_hit=0.2") > latency_ms(policy, "cold")


def test_ui_changes_frames_and_not_latency() -> None:
    rows = [
        hetrl.measure("vgg16", "d1", policy="mace_gpu_image", condition=c) for c in ("cold", "ui=none", "ui=120hz:4ms")
    ]
    assert len({row.latency_ms for row in rows}) == 1
    assert rows[1].frame_drop_rate is None
    assert rows[0].frame_drop_rate is not None and rows[2].frame_drop_rate is not None
    assert rows[0].frame_drop_rate <= rows[2].frame_drop_rate


def test_suspended_operators_cost_accelerated_plans_alone() -> None:
    assert latency_ms("mace_cpu", "sigma0,suspended=0.5") == latency_ms("mace_cpu", "sigma0")
    assert latency_ms("mace_cpu", "sigma4") == latency_ms("mace_cpu", "sigma0")
    assert latency_ms("mace_gpu_image", "sigma4") > 1.3 * latency_ms("mace_gpu_image", "sigma0")


@pytest.mark.filterwarnings("error")
def test_suspended_work_is_done_by_the_cpu_and_costs_its_energy(device: SurrogateDevice) -> None:
    plan = find_policy("mace_gpu_image").plan(device)
    rows = [device.measure(plan, parse_condition(text)) for text in ("cold", "suspended=0.5", "suspended=1")]
    cpu = [row.utilization[0].busy for row in rows]
    assert cpu == sorted(cpu) and cpu[0] == 0 and cpu[2] > 0.9
    energy = [row.energy_mj or 0.0 for row in rows]
    assert energy == sorted(energy)
    alone = device.measure(find_policy("mace_cpu").plan(device), parse_condition("cold"))
    assert energy[2] > (alone.energy_mj or 0.0)
    assert not np.isnan(device.cost_model(condition=parse_condition("suspended=1")).tables.time_ms).any()


def test_competition_grows_as_the_study_says(device: SurrogateDevice) -> None:
    """With 3 competitors the GPU slows down 2.1 times; the CPU by 4 plus a slice per operator."""
    count = len(device.graph.groups)
    cold, busy = (latency_ms("mace_gpu_image", c) for c in ("cold", "competitors=3"))
    assert busy / cold == pytest.approx(2.1, rel=0.1)  # moving inputs and outputs is the CPU's part of it
    slice_ms = study_effects().competitor_slice_ms.value
    cpu = latency_ms("mace_cpu", "competitors=3")
    assert cpu == pytest.approx(4 * latency_ms("mace_cpu", "cold") + 3 * slice_ms * count, rel=1e-6)


def test_exact_replans_under_load(device: SurrogateDevice) -> None:
    for condition in ("sigma2", "competitors=2", "sigma4"):
        best = latency_ms("exact", condition)
        assert all(best <= latency_ms(p, condition) + 1e-9 for p in ("mace_cpu", "mace_gpu_image", "codl_image"))
    row = hetrl.measure("resnet18", "d1", policy="exact", condition="competitors=2")
    assert row.evidence == "predicted"


def study() -> tuple[Profile, ...]:
    return profiles(load_spec("d1").engine("mace"))


def test_table_3_held_out() -> None:
    found = np.abs(np.array([error for _, error in leave_one_model_out(study())]))
    assert found.shape == (6, 4) and len(NAMES) <= 6
    assert found.mean() <= 0.12 and found.max() <= 0.35


def test_shipped_effects_are_the_fit() -> None:
    values = fit(study())
    shipped = [getattr(study_effects(), name).value for name in NAMES]
    assert shipped == pytest.approx(values.tolist(), rel=1e-3)
    assert np.abs(errors(np.array(shipped), study())).mean() < 0.08
