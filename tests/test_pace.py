"""How fast cores are beside their best."""

import os
from pathlib import Path

import pytest

from hetrl.device_bridge.runner.pace import Pace, on_virtual_machine, work_ms


def test_slowness_is_that_of_the_slowest_core_beside_its_own_best():
    takes = {}
    pace = Pace(lambda: takes[next(iter(os.sched_getaffinity(0)))])
    allowed = os.sched_getaffinity(0)
    one, *others = sorted(allowed)
    takes |= dict.fromkeys(allowed, 4.0) | {one: 1.0}
    assert pace.slowness(sorted(allowed)) == 1.0  # a slow core is no slower than it ever was
    takes[one] = 1.5
    assert pace.slowness(sorted(allowed)) == 1.5
    assert not others or pace.slowness(others) == 1.0
    takes[one] = 0.5
    assert pace.slowness([one]) == 1.0
    takes[one] = 1.0
    assert pace.slowness([one]) == 2.0
    assert os.sched_getaffinity(0) == allowed


def test_the_work_takes_a_moment():
    assert 0.005 < min(work_ms() for _ in range(20)) < 20


@pytest.mark.parametrize(("flags", "virtual"), [("fpu hypervisor avx", True), ("fpu avx", False), ("", False)])
def test_who_says_that_it_is_virtual(tmp_path: Path, flags: str, virtual: bool):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert on_virtual_machine(tmp_path) is virtual
