"""Options behind a policy's name: MACE's kernel slicing and queue window."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hetrl
from hetrl.agents.policies import find_policy, policy_catalog
from hetrl.agents.policies.options import KernelOptions, parse_options
from hetrl.cli.main import run
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.errors import UnknownName, UsageError
from hetrl.plan import QUEUE_WINDOW_RANGE, SLICE_MS_RANGE
from tests.surrogate_help import D1, chain_graph, measured

ABLE = ("mace_gpu_buffer", "mace_gpu_image")
SCREEN = "cold,ui=90hz:3ms"


@given(st.none() | st.floats(*SLICE_MS_RANGE), st.none() | st.integers(*QUEUE_WINDOW_RANGE), st.booleans())
def test_whatever_a_plan_may_have_is_read(slice_ms: float | None, window: int | None, swapped: bool) -> None:
    items = [f"slice_ms={slice_ms!r}"] * (slice_ms is not None) + [f"queue_window={window}"] * (window is not None)
    if items:
        text = ",".join(reversed(items) if swapped else items)
        assert parse_options(text, "mace_gpu_image") == KernelOptions(slice_ms, window)


def test_options_reach_the_plan_and_change_nothing_else() -> None:
    device = SurrogateDevice(D1, chain_graph(3, size=112, channels=64))
    plain = find_policy("mace_gpu_image").plan(device)
    tuned = find_policy("mace_gpu_image:slice_ms=1,queue_window=4").plan(device)
    assert (plain.kernel_slice_ms, plain.queue_window) == (None, None)
    assert (tuned.kernel_slice_ms, tuned.queue_window) == (1.0, 4)
    assert tuned.segments == plain.segments
    assert tuned.made_by is not None and tuned.made_by.method == "mace_gpu_image:slice_ms=1,queue_window=4"
    alone = find_policy("mace_gpu_image:queue_window=4").plan(device)
    assert (alone.kernel_slice_ms, alone.queue_window) == (None, 4)


def test_maces_options_trade_latency_for_the_screen() -> None:
    """Kernels of more than 1 ms are cut, and the host waits for a short queue (XiaoMi/mace, issues 222 and 532).

    A frame of 90 Hz that takes 3 ms can wait for 8.1 ms: for one kernel of 1 ms, not for sixteen.
    """
    plain, sliced, both = (
        hetrl.measure("vgg16", "d1", policy=f"mace_gpu_image{options}", condition=SCREEN)
        for options in ("", ":slice_ms=1", ":slice_ms=1,queue_window=1")
    )
    assert [row.policy for row in (plain, sliced, both)] == [
        "mace_gpu_image", "mace_gpu_image:slice_ms=1", "mace_gpu_image:slice_ms=1,queue_window=1",
    ]  # fmt: skip
    took = [row.latency_ms or 0.0 for row in (plain, sliced, both)]
    dropped = [row.frame_drop_rate or 0.0 for row in (plain, sliced, both)]
    assert took[0] < took[1] < took[2]
    assert min(dropped[:2]) > 0.9 and dropped[2] == 0.0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mace_gpu_image:slice=1", "unknown option of mace_gpu_image 'slice'; did you mean 'slice_ms'"),
        ("mace_gpu_image:queue_windw=4", "did you mean 'queue_window'"),
        ("mace_gpu_image:", "unknown option"),
        ("mace_gpu_image:slice_ms", "slice_ms without a value"),
        ("mace_gpu_image:slice_ms=", "slice_ms without a value"),
        ("mace_gpu_image:slice_ms=1,slice_ms=2", "slice_ms twice"),
        ("mace_gpu_image:slice_ms=0", "slice_ms=0 is not a number of milliseconds from 0.01 to 1000"),
        ("mace_gpu_image:slice_ms=nan", "slice_ms=nan is not"),
        ("mace_gpu_image:slice_ms=fast", "slice_ms=fast is not"),
        ("mace_gpu_image:queue_window=1025", "queue_window=1025 is not a whole number from 1 to 1024"),
        ("mace_gpu_image:queue_window=1.5", "queue_window=1.5 is not a whole number"),
        ("mace_dsp:queue_window=4", "'mace_dsp' takes no options, mace_gpu_buffer and mace_gpu_image do; leave"),
        ("mace_cpu:slice_ms=1", "'mace_cpu' takes no options"),
        ("codl_image:slice_ms=1", "'codl_image' takes no options"),
        ("mace_gpu_imag:slice_ms=1", "unknown policy 'mace_gpu_imag'; did you mean 'mace_gpu_image'"),
    ],
)
def test_what_makes_no_sense_is_one_line(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError) as raised:
        find_policy(name)
    assert said in str(raised.value)
    assert run(["measure", "--device", "d1", "--model", "resnet18", "--policy", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_an_unknown_option_is_an_unknown_name() -> None:
    with pytest.raises(UnknownName):
        find_policy("mace_gpu_image:window=3")


def test_the_list_of_policies_shows_who_takes_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(p.id for p in policy_catalog() if p.options) == ABLE
    assert run(["policies", "--json"]) == 0
    listed = {p["id"]: p["options"] for p in json.loads(capsys.readouterr().out)["policies"]}
    assert {name for name, options in listed.items() if options == ["slice_ms", "queue_window"]} == set(ABLE)
    assert run(["policies"]) == 0
    assert "slice_ms" in capsys.readouterr().out


def test_measuring_by_the_command_line_and_by_python_agree(capsys: pytest.CaptureFixture[str]) -> None:
    name = "mace_gpu_buffer:queue_window=2"
    assert run(["measure", "--device", "d1", "--model", "resnet18", "--policy", name, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["policy"] == name
    assert row["latency_ms"] == hetrl.measure("resnet18", "d1", policy=name).latency_ms
    device = SurrogateDevice(D1, chain_graph(3))
    assert measured(device, find_policy(name).plan(device)).latency_ms
