"""What Android's programs print, and the names that may go to a phone; no phone is needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrl.device_bridge.adb.address import AdbAddress, checked_package, parse_adb_address
from hetrl.device_bridge.adb.benchncnn import BenchSettings, NcnnModel
from hetrl.device_bridge.adb.frames import FrameStats, parse_frames
from hetrl.device_bridge.adb.system import Battery, parse_battery
from hetrl.errors import UsageError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("adb:R58M123ABC", AdbAddress("R58M123ABC")),
        ("adb:emulator-5554", AdbAddress("emulator-5554")),
        ("adb:192.168.1.7:5555", AdbAddress("192.168.1.7:5555")),
        ("adb:adb-R5CT-x1._adb-tls-connect._tcp", AdbAddress("adb-R5CT-x1._adb-tls-connect._tcp")),
        (
            "adb:X1?benchncnn=/opt/my tools/benchncnn&app=com.example.app",
            AdbAddress("X1", Path("/opt/my tools/benchncnn"), "com.example.app"),
        ),
        ("adb:X1?termux=u0_a123", AdbAddress("X1", termux="u0_a123")),
    ],
)
def test_an_address_is_read(text: str, address: AdbAddress) -> None:
    assert parse_adb_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "adb:",
        "adb",
        "X1",
        "ssh://X1",
        "adb:-s",
        "adb:X1;reboot",
        "adb:$(id)",
        "adb:X 1",
        "adb:X1\n",
        "adb:../X1",
        "adb:é",
        "adb:X1?",
        "adb:X1?app=",
        "adb:X1?app=com.example;id",
        "adb:X1?app=noDots",
        "adb:X1?app=com.a&app=com.b",
        "adb:X1?shell=id",
        "adb:X1?termux=-oProxyCommand=id",
    ],
)
def test_what_makes_no_sense_is_one_clear_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_adb_address(text)
    assert "\n" not in str(caught.value) and caught.value.hint


@given(st.text() | st.lists(st.sampled_from(["com", ".", "a", "1", "-", ";", "$(id)", "\n", " ", "é"])).map("".join))
def test_no_package_holds_anything_that_a_shell_would_read(text: str) -> None:
    try:
        package = checked_package(text)
    except UsageError:
        return
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_.]*", package) and "." in package


GFXINFO = """\
Applications Graphics Acceleration Info:
** Graphics info for pid {pid} [com.example.app] **
Stats since: 992991790325ns
Total frames rendered: {frames}
Janky frames: {janky} (4.76%)
Janky frames (legacy): 77 (7.14%)
Number Missed Vsync: 1
"""
TIMES = """\
---PROFILEDATA---
Flags,IntendedVsync,Vsync,FrameCompleted,
0,1000000,1000000,9000000,
8,1000000,1000000,99000000,
0,2000000,2000000,22000000,
0,broken
---PROFILEDATA---
"""


def test_frames_are_counted_over_all_processes() -> None:
    text = GFXINFO.format(pid=1, frames=84, janky=4) + TIMES + GFXINFO.format(pid=2, frames=16, janky=1) + TIMES
    stats = parse_frames(text)
    assert stats == FrameStats(100, 5, (8.0, 20.0, 8.0, 20.0))
    assert stats.drop_rate == 0.05


def test_an_app_that_drew_nothing_has_no_drop_rate() -> None:
    stats = parse_frames(GFXINFO.format(pid=1, frames=0, janky=0))
    assert stats is not None and stats.drop_rate is None


@pytest.mark.parametrize("text", ["", "No process found for: com.example.app", "Total frames rendered: 3"])
def test_what_counts_nothing_is_none(text: str) -> None:
    assert parse_frames(text) is None


@given(st.text(st.sampled_from("01,\n -PROFILEDATAFlagsIntendedVsyncFrameCompleted:()"), max_size=300))
def test_no_output_breaks_the_parser(text: str) -> None:
    parse_frames(GFXINFO.format(pid=1, frames=1, janky=1) + "---PROFILEDATA---\n" + text + "\n---PROFILEDATA---")


def test_a_battery_is_read() -> None:
    text = "Current Battery Service state:\n  AC powered: false\n  USB powered: true\n  level: 42\n  scale: 50\n"
    assert parse_battery(text) == Battery(0.84, None, True)
    assert parse_battery(text + "  temperature: 301\n") == Battery(0.84, 30.1, True)
    assert parse_battery("Can't find service: battery") is None


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError):
        BenchSettings(powersave=3)
    with pytest.raises(UsageError):
        BenchSettings(loops=0)
    with pytest.raises(UsageError):
        NcnnModel("", (224, 224, 0), False)
