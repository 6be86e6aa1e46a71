"""The frame probe, its arithmetic and the real process."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrl.device_bridge.runner.competitors import Competitors
from hetrl.device_bridge.runner.frames import FrameProbe, Frames, draw_for, refreshes_missed
from hetrl.device_bridge.runner.telemetry import all_cores

WATCH = Path(__file__).with_name("frame_watch.py")


@pytest.mark.parametrize(("end", "missed"), [(0.0, 0), (9.0, 0), (16.0, 0), (16.1, 1), (32.0, 1), (33.0, 2)])
def test_a_frame_is_dropped_at_every_refresh_that_it_misses(end, missed):
    assert refreshes_missed(0.0, end, 16.0) == missed


@given(st.floats(0, 1e6), st.floats(0, 1000), st.floats(1, 100))
def test_the_next_frame_begins_at_the_refresh_after_the_end(start, took, period):
    after = start + (1 + refreshes_missed(start, start + took, period)) * period
    assert after >= (start + took) * (1 - 1e-9) and after <= (start + took + period) * (1 + 1e-9)


def test_no_frames_is_no_rate():
    assert Frames(0, 0).rate == 0 and Frames(200, 50).rate == 0.25


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_idle_drops_nothing_and_a_busy_neighbour_on_the_core_drops_frames():
    seen = json.loads(
        subprocess.run(
            [sys.executable, str(WATCH)],
            env={**os.environ, "PYTHONPATH": str(WATCH.parents[1])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    alone, beside = seen["alone"], seen["beside"]
    # Whatever else the machine does: a frame that is drawn got its 9 ms, and every refresh is counted.
    for moment in (alone, beside):
        assert moment["cpu_ms"] == pytest.approx(9, rel=0.15) and moment["rate_hz"] == pytest.approx(60, rel=0.15), seen
    # 9 ms fit into 16.7 ms, and half of a core is too little. If no moment was quiet enough to show the first of these,
    # the same work without the probe must have been late as well.
    assert beside["rate"] > 0.3, seen
    assert alone["rate"] < 0.05 or seen["late"] > 0.02, seen


def test_timed_frames_take_their_cpu_time_however_fast_a_core_is():
    began = time.thread_time()
    for _ in range(20):
        draw_for(4.0)
    assert (time.thread_time() - began) * 1000 == pytest.approx(80, rel=0.15)
    with FrameProbe(200, 3.5, all_cores(), 1e9, timed=True) as probe:  # so fast a core would take hours for its work
        probe.restart()
        time.sleep(0.5)
        assert probe.read().frames >= 50


def test_helpers_end_with_their_block():
    with FrameProbe(60, 1.0, all_cores()) as probe, Competitors(2, all_cores()) as competitors:
        pids = probe.pids + competitors.pids
        assert len(pids) == 3
        for pid in pids:
            os.kill(pid, 0)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert probe.pids == competitors.pids == ()


def test_a_later_probe_draws_as_much_as_an_earlier_one():
    with FrameProbe(60, 1.0, all_cores()) as probe:
        found = probe.steps_per_ms
    assert found > 100
    with FrameProbe(60, 1.0, all_cores(), 3 * found) as probe:
        assert probe.steps_per_ms == 3 * found  # this one, on a busy machine, found less
