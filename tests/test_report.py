"""Tables, sentences and charts say what the data says."""

import io
import sys

import msgspec
import pytest
from rich.console import Console
from rich.table import Table

from hetrl.compression import Compression
from hetrl.errors import MissingExtra
from hetrl.measurement import SegmentTiming
from hetrl.plan import Axis, Cap, Evidence, Memory, ModelRef, Part, Plan, Segment
from hetrl.report.comparison import comparison_lines, comparison_table
from hetrl.report.gantt import gantt_rgb, gantt_text
from hetrl.report.tables import (
    certificate,
    faster,
    interval,
    number,
    percent,
    plan_words,
    rows_table,
    segments_table,
    short_names,
)
from hetrl.results import Comparison, PolicyLatency, Row, best_hand, best_single, fastest_hands

CPU, GPU = "cpu/mace/fp32", "gpu/mace/fp32"
TIMINGS = (
    SegmentTiming("conv1", (GPU,), 0.0, 4.0, 1.0),
    SegmentTiming("conv2", (GPU, CPU), 4.0, 6.0, 0.5),
    SegmentTiming("fc", (CPU,), 6.0, 10.0, 0.0),
)


def row(policy: str, latency_ms: float | None, *processors: str, keeps: bool = True, error: str | None = None) -> Row:
    return Row(
        policy=policy,
        latency_ms=latency_ms,
        latency_interval_ms=None,
        accuracy_drop_pct=0.0,
        peak_memory_mb=10.0,
        model_size_mb=5.0,
        energy_mj=None,
        frame_drop_rate=0.25,
        fallback_ratio=0.0,
        processors=processors,
        utilization={},
        keeps_budgets=keeps,
        evidence=Evidence.CALIBRATED,
        error=error,
    )


def text(table: Table, width: int = 300) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


ROWS = (
    row("int8", 5.0, GPU, keeps=False),
    row("learned", 10.0, GPU, CPU),
    row("gpu", 20.0, GPU),
    row("cpu", 40.0, CPU),
    row("npu", None, error="unsupported: no such processor"),
)
COMPARISON = Comparison(device="d1", model="m", engine="mace", condition="cold", rows=ROWS, winner="learned")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0.000"), (12.34567, "12.35"), (123456.7, "123457"), (0.00012345, "0.0001234")],
)
def test_number(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_small_words() -> None:
    assert number(2.0, "ms") == "2.000 ms"
    assert percent(0.1234) == "12.3 %"
    assert percent(None) == "-"
    assert faster(5.0, 10.0) == "2.00x"
    assert faster(None, 10.0) == "-"


def test_the_best_single_processor_keeps_the_budgets() -> None:
    best = best_single(ROWS)
    assert best is not None and best.policy == "gpu"


def test_of_equal_policies_the_runtime_s_own_is_named() -> None:
    rows = [row(name, 10.0, CPU) for name in ("band_fixed", "mace_cpu", "ort_greedy")] + [row("slow", 11.0, CPU)]
    assert {r.policy for r in fastest_hands(rows)} == {"band_fixed", "mace_cpu", "ort_greedy"}
    hand = best_hand(rows)
    assert hand is not None and hand.policy == "mace_cpu"
    assert best_hand([row("learned", 1.0, CPU), row("broken", 1.0, CPU, keeps=False)]) is None


def told_by(comparison: Comparison, width: int = 300) -> dict[str, str]:
    """Lines of the table by policy."""
    lines = text(comparison_table(comparison, width), width).splitlines()
    return {line.split()[0]: line for line in lines if line.strip()}


def test_comparison_marks_what_breaks_a_budget_and_says_the_evidence() -> None:
    broken = msgspec.structs.replace(ROWS[0], breaks="loses 2.00 points of accuracy, the limit is 0")
    guessed = msgspec.structs.replace(ROWS[3], evidence=Evidence.PREDICTED)
    learned = msgspec.structs.replace(ROWS[1], speedup_over_single=2.0)
    rows = (broken, learned, ROWS[2], guessed, ROWS[4])
    compared = msgspec.structs.replace(COMPARISON, rows=rows)
    told = told_by(compared)
    assert "broken" in told["int8"]
    assert "kept" in told["learned"] and "2.00x" in told["learned"]
    assert "failed" in told["npu"]
    assert comparison_lines(compared) == [
        "",
        f"best       learned, 10.00 ms (calibrated), 2.00x the speed of one processor ({GPU})",
        "broken     int8 loses 2.00 points of accuracy, the limit is 0",
        "failed     npu: unsupported: no such processor",
        "evidence   calibrated latencies; predicted: cpu",
    ]


def test_every_plan_that_keeps_the_budgets_has_its_certificate() -> None:
    gaps = {"learned": 0.0, "gpu": 1.0, "cpu": 0.0001}
    rows = tuple(msgspec.structs.replace(r, gap_to_exact=gaps.get(r.policy)) for r in ROWS)
    compared = msgspec.structs.replace(COMPARISON, rows=rows, bound_ms=10.0, exact_ms=10.0)
    told = told_by(compared)
    assert "optimal" in told["learned"] and "100.0 %" in told["gpu"] and "< 0.1 %" in told["cpu"]
    assert "broken" in told["int8"] and "failed" in told["npu"]
    line = "bound      optimal: no plan of the search space is faster than 10.00 ms (calibrated)"
    assert line in comparison_lines(compared)


@pytest.mark.parametrize(
    ("gap", "shown"),
    [
        (0.0, "optimal"),
        (1e-12, "optimal"),
        (0.0123, "within 1.2 % of a proven bound"),
        (1e-4, "within 0.1 % of a proven bound"),
    ],
)
def test_certificates(gap: float, shown: str) -> None:
    assert certificate(gap) == shown


def test_names_are_short_where_that_is_clear() -> None:
    names = ["dsp/tflite/int8", "cpu/tflite/fp32", "gpu/tflite/fp16", "gpu/tflite/fp32", "cpu/tflite/fp32"]
    assert short_names(names) == {
        "dsp/tflite/int8": "dsp",
        "cpu/tflite/fp32": "cpu",
        "gpu/tflite/fp16": "gpu/tflite/fp16",
        "gpu/tflite/fp32": "gpu/tflite/fp32",
    }


def test_no_winner_has_no_best_line() -> None:
    lost = Comparison(device="d1", model="m", engine="mace", condition="cold", rows=ROWS[:1], winner=None)
    assert not any(line.startswith(("best", "bound")) for line in comparison_lines(lost))


@pytest.mark.parametrize(
    ("bounds_ms", "shown"),
    [
        (None, "-"),
        ((118.6, 160.4), "119-160"),
        ((99.96, 1204.4), "100-1204"),
        ((9.123, 99.94), "9.12-99.9"),
        ((0.01234, 1.0), "0.0123-1.00"),
    ],
)
def test_intervals_are_short(bounds_ms: tuple[float, float] | None, shown: str) -> None:
    assert interval(bounds_ms) == shown


def test_a_latency_is_told_with_its_interval() -> None:
    sure = tuple(
        msgspec.structs.replace(r, latency_interval_ms=r.latency_ms and (0.8 * r.latency_ms, 1.2 * r.latency_ms))
        for r in ROWS
    )
    told = {line.split()[0]: line for line in text(rows_table(sure)).splitlines() if line.strip()}
    assert " 10.00 8.00-12.0 " in told["learned"] and " 40.00 32.0-48.0 " in told["cpu"]
    assert told["npu"].split()[1:3] == ["-", "-"]
    assert "90 %" not in text(rows_table(ROWS))  # nobody knows any
    compared = msgspec.structs.replace(COMPARISON, rows=sure)
    assert "8.00-12.0" in told_by(compared)["learned"]
    assert comparison_lines(compared)[1].startswith("best       learned, 10.00 ms (calibrated, 90 % in 8.00-12.0 ms)")


def test_a_usual_comparison_fits_a_terminal_of_80_columns() -> None:
    rows = tuple(
        msgspec.structs.replace(
            row(name, 123.4, *units, keeps=name[0] != "n"),
            latency_interval_ms=(100.0, 1500.0),
            energy_mj=1234.0,
            accuracy_drop_pct=4.69 if name[0] == "n" else 0.0,
            speedup_over_single=1.5,
            gap_to_exact=0.0,
            utilization={GPU: 0.5, CPU: 0.5},
        )
        for name, units in (("nn_stretch_cpu_gpu_dsp", (GPU, CPU)), ("exact", (GPU, CPU)), ("mace_cpu", (CPU,)))
    )
    compared = Comparison(
        device="d1", model="m", engine="mace", condition="cold", rows=rows, winner="exact", bound_ms=123.4
    )
    lines = text(comparison_table(compared), width=80).splitlines()
    assert len(lines) == 3 + len(rows)  # headings of two lines, a rule, and no row that wraps
    assert max(map(len, lines)) <= 80
    wide = text(comparison_table(compared, 300)).splitlines()
    for heading in ("latency", "90 % in", "single", "bound", "memory", "energy", "frame", "accuracy", "model", "busy"):
        assert any(heading in line for line in wide[:2]), heading


def test_rows_against_the_best_hand_policy() -> None:
    assert "4.00x" in text(rows_table(ROWS, PolicyLatency("gpu", 20.0))).splitlines()[3]
    assert "vs best" not in text(rows_table(ROWS))


def test_markup_in_names_is_literal() -> None:
    assert "[red]x" in text(rows_table([row("[red]x", 1.0, CPU)]))


def test_a_plan_in_words() -> None:
    plan = Plan(
        model=ModelRef("m", "0" * 64),
        device="d1",
        engines=("mace",),
        segments=(
            Segment(nodes=("a", "b"), parts=(Part(GPU, 70), Part(CPU, 30)), axis=Axis.HEIGHT, memory=Memory.IMAGE),
            Segment(nodes=("c",), parts=(Part(CPU),)),
        ),
        caps=(Cap(GPU, 0.8),),
        queue_window=4,
        kernel_slice_ms=2.0,
        compression=Compression(0.3),
    )
    assert plan_words(plan) == (
        f"2 segments on {GPU} and {CPU}, 1 of them split, image memory, {GPU} busy at most 80.0 % of the time, "
        "queue window 4, kernels in slices of 2 ms, 30.0 % of the prunable channels taken away"
    )
    lines = text(segments_table(plan)).splitlines()
    assert lines[2].split() == ["s0", "2", "a", "b", GPU, "70", "%,", CPU, "30", "%", "height", "image"]
    assert lines[3].split() == ["s1", "1", "c", "c", CPU, "-", "-"]


def test_gantt_text() -> None:
    assert gantt_text(TIMINGS, width=36).splitlines() == [
        f"{GPU} |░░████████▒▒▒▒        |".replace("▒▒▒▒", "░▓▓▓").replace("████████", "██████"),
        f"{CPU} |        ░███▓▓▓▓▓▓▓▓|",
        f"{'':13}  0          10.000 ms",
    ]


@pytest.mark.parametrize("width", [1, 30, 80, 200])
def test_gantt_text_keeps_its_width_and_shows_every_processor(width: int) -> None:
    lines = gantt_text(TIMINGS, width).splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines[:2]}) == 1
    assert all(len(line) <= max(width, len(GPU) + 13) for line in lines)


def test_gantt_of_nothing() -> None:
    assert gantt_text(()) == "no segments"


def test_gantt_as_image() -> None:
    pytest.importorskip("matplotlib")
    image = gantt_rgb(TIMINGS, width=400, height=200, title="d1")
    assert image.shape == (200, 400, 3)
    assert image.dtype.name == "uint8"
    assert image.min() < 128 < image.max()


def test_gantt_as_image_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"pip install 'hetrl\[plots\]'"):
        gantt_rgb(TIMINGS)
