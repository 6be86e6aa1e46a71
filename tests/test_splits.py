"""Where split operators are cut: roundings, halos, and what of them the tables hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.tables import Layout, Option, build_layout
from hetrl.device_bridge.surrogate.workload import Workload, workload_of
from hetrl.graph import InputRole
from hetrl.plan import Axis
from hetrl.splits import CHANNEL_MULTIPLE, channel_bounds, every_part_works, input_rows, row_bounds
from hetrl.testing.models import random_graph
from tests.surrogate_help import D1, chain_graph

ENGINE = D1.engine()


@st.composite
def shares(draw: st.DrawFn) -> tuple[int, ...]:
    cuts = sorted(draw(st.sets(st.integers(1, 99), min_size=1, max_size=4)))
    return tuple(high - low for low, high in zip([0, *cuts], [*cuts, 100], strict=True))


@given(st.integers(1, 2048), shares())
def test_bounds_cover_everything_in_order(total: int, parts: tuple[int, ...]) -> None:
    for bounds, multiple in ((channel_bounds(total, parts), CHANNEL_MULTIPLE), (row_bounds(total, parts), 1)):
        assert len(bounds) == len(parts) + 1
        assert (bounds[0], bounds[-1]) == (0, total)
        assert list(bounds) == sorted(bounds)
        for cut, percent in zip(bounds[1:-1], np.cumsum(parts), strict=False):
            assert cut == total or cut % multiple == 0
            assert total * percent / 100 <= cut < total * percent / 100 + multiple + 1 or cut == total
        assert every_part_works(bounds) == (len(set(bounds)) == len(bounds))


windows = st.fixed_dictionaries(
    {
        "height": st.integers(1, 40),
        "kernel": st.integers(1, 7),
        "stride": st.integers(1, 4),
        "dilation": st.integers(1, 3),
        "pad_top": st.integers(0, 6),
    }
)


@given(windows, st.integers(0, 30), st.integers(1, 30))
@settings(max_examples=300)
def test_input_rows_are_those_that_the_window_touches(window: dict[str, int], first: int, count: int) -> None:
    low, high = input_rows(first, first + count, **window)
    touched = {
        row * window["stride"] - window["pad_top"] + tap * window["dilation"]
        for row in range(first, first + count)
        for tap in range(window["kernel"])
    } & set(range(window["height"]))
    assert 0 <= low <= high <= window["height"]
    assert touched <= set(range(low, high))
    dense = window["stride"] <= window["kernel"] and window["dilation"] == 1
    if touched and dense:
        assert touched == set(range(low, high))
    elif touched and window["pad_top"] == 0:
        assert low == min(touched)


def rows_of(layout: Layout, option: int, position: int, end: int) -> tuple[int, int]:
    """Output rows of both parts of a position in the chain that ends at `end`."""
    found = []
    for part in (layout.parts[1], layout.parts[0]):
        assert part is not None
        where = (part.position == position) & (part.option == option) & (part.offset == end - position)
        (index,) = np.flatnonzero(where)
        found.append(int(part.shapes.out_h[index]))
    return found[0], found[1]


def rows_read(work: Workload, k: int, reader: int, made: np.ndarray) -> np.ndarray:
    """Which rows of what `k` writes a later position reads to make the rows `made`, one window tap after another."""
    rows = work.items[k].geometry.out_h
    mask = np.zeros(rows, dtype=bool)
    g = work.items[reader].geometry
    for read in work.items[reader].reads:
        if read.tensor in work.items[k].writes and read.role is InputRole.WINDOW:
            for out_row in np.flatnonzero(made):
                taps = out_row * g.stride_h - g.pad_top + np.arange(g.kernel_h) * g.dilation_h
                mask[taps[(taps >= 0) & (taps < rows)]] = True
        elif read.tensor in work.items[k].writes:
            mask |= made
    return mask


def parts_rows(work: Workload, start: int, end: int) -> dict[int, tuple[int, int]]:
    """(upper, lower) of each position: a band [0, upper) and one [lower, all) that hold what the chain reads."""
    made: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    bands: dict[int, tuple[int, int]] = {}
    for k in range(end, start - 1, -1):
        rows = work.items[k].geometry.out_h
        readers = [r for t in work.items[k].writes for r in work.readers[t] if start <= r <= end]
        if readers:
            needed = [np.logical_or.reduce([rows_read(work, k, r, made[r][part]) for r in readers]) for part in (0, 1)]
            lower = min([*np.flatnonzero(needed[1]), rows - 1])
            upper = max([*(np.flatnonzero(needed[0]) + 1), 1, lower])  # together they make the whole tensor
        else:
            upper = row_bounds(rows, (50, 50))[1]
            lower = min(upper, rows - 1)
        bands[k] = (int(upper), int(lower))
        made[k] = (np.arange(rows) < upper, np.arange(rows) >= lower)
    return bands


@given(st.integers(0, 5000))
@settings(max_examples=30)
def test_halos_hold_what_the_rest_of_the_chain_reads_and_no_more(seed: int) -> None:
    graph = random_graph(seed, 8, unsupported=False)
    work = workload_of(graph)
    halves = Option((1, 0), Axis.HEIGHT, (50, 50))
    layout = build_layout(work, ENGINE, (Option((0,)), Option((1,)), halves))
    for end in np.flatnonzero(layout.possible[:, 2]).tolist():
        start = end
        while start > 0 and work.items[start - 1].splits_height:
            start -= 1
        for k, (upper, lower) in parts_rows(work, start, end).items():
            assert rows_of(layout, 2, k, end) == (upper, work.items[k].geometry.out_h - lower)
            g = work.items[k].geometry
            taps = np.arange(lower, g.out_h)[:, None] * g.stride_h - g.pad_top + np.arange(g.kernel_h) * g.dilation_h
            read_rows = taps[(taps >= 0) & (taps < g.in_h)]
            for slot, read in enumerate(work.items[k].reads):
                shared = layout.host_in[k][slot][2, end - k] / (work.elements[read.tensor] / 1e6)
                if read.role is InputRole.ALIGNED:
                    assert shared == pytest.approx((g.out_h - lower) / g.out_h)
                elif read_rows.size:
                    assert shared == pytest.approx((g.in_h - read_rows.min()) / g.in_h)


def test_a_height_split_keeps_all_weights_twice_and_a_channel_split_once() -> None:
    device = SurrogateDevice(D1, chain_graph(2))
    layout = device.cost_model().tables
    for o, option in enumerate(device.options):
        times = 2 if option.axis is Axis.HEIGHT else 1
        expected = times * 4e-6 * np.array([item.weight_elements for item in layout.workload.items])
        assert np.allclose(layout.weights_mb[:, o], expected)


def test_parts_of_a_channel_split_are_multiples_of_four_and_read_what_they_need() -> None:
    device = SurrogateDevice(D1, chain_graph(1, channels=24))
    layout = device.cost_model().tables
    gpu = layout.parts[1]
    assert gpu is not None
    for o, option in enumerate(device.options):
        if option.axis is Axis.OUTPUT_CHANNELS and layout.possible[0, o]:
            (index,) = np.flatnonzero(gpu.option == o)
            assert gpu.shapes.out_channels[index] % CHANNEL_MULTIPLE == 0
            assert layout.host_in[0][0][o, 0] == layout.workload.elements[layout.workload.inputs[0]] / 1e6
            rest = 24 - gpu.shapes.out_channels[index]
            assert layout.host_out[0, o, 0] == rest / 24 * layout.workload.elements[layout.workload.outputs[0]] / 1e6
