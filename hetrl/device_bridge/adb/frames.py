"""Frames of an app, as Android counts them: `dumpsys gfxinfo PACKAGE framestats`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from hetrl.device_bridge.adb.adb import Adb
from hetrl.device_bridge.adb.address import checked_package

_BLOCK = "---PROFILEDATA---"


class FrameStats(msgspec.Struct, frozen=True):
    """Frames since the last reset.

    :param janky: those that missed their deadline, in Android's own count.
    :param frame_ms: from the intended vsync to the frame's completion, of the last frames (Android keeps 120).
    """

    frames: int
    janky: int
    frame_ms: tuple[float, ...] = ()

    @property
    def drop_rate(self) -> float | None:
        """Janky over all frames (0 to 1), None if none was drawn."""
        return self.janky / self.frames if self.frames else None


def reset_frames(adb: Adb, package: str) -> bool:
    """Let Android count from zero; False where the app does not run.

    :raises UsageError: no package can have that name.
    :raises ChannelLost: the phone does not answer.
    """
    return _gfxinfo(adb, package, "reset") is not None


def frame_stats(adb: Adb, package: str) -> FrameStats | None:
    """What an app drew since `reset_frames`; None where it does not run.

    :raises UsageError, ChannelLost: as for `reset_frames`.
    """
    text = _gfxinfo(adb, package, "framestats")
    return None if text is None else parse_frames(text)


def parse_frames(text: str) -> FrameStats | None:
    """Read the output of `dumpsys gfxinfo`; None if it counts nothing. An app with several processes has several
    counts, which are added.

    Frames with flags are not timed, as the documentation of framestats asks for.
    """
    # Newer versions have `Janky frames (legacy):` as well, with older rules; it is another line.
    frames = [int(n) for n in re.findall(r"^\s*Total frames rendered: (\d+)\s*$", text, re.MULTILINE)]
    janky = [int(n) for n in re.findall(r"^\s*Janky frames: (\d+)\b", text, re.MULTILINE)]
    if not frames or len(frames) != len(janky):
        return None
    return FrameStats(sum(frames), sum(janky), tuple(_frame_times_ms(text)))


def _frame_times_ms(text: str) -> Iterator[float]:
    """The blocks between two lines `---PROFILEDATA---` are tables with a header, in ns."""
    for block in text.split(_BLOCK)[1::2]:
        lines = [line.strip().rstrip(",").split(",") for line in block.splitlines() if line.strip()]
        if not lines or not {"Flags", "IntendedVsync", "FrameCompleted"} <= set(lines[0]):
            continue
        columns = [lines[0].index(name) for name in ("Flags", "IntendedVsync", "FrameCompleted")]
        for row in lines[1:]:
            if len(row) >= len(lines[0]) and all(row[c].isdigit() for c in columns):
                flags, begin, end = (int(row[c]) for c in columns)
                if flags == 0 and end > begin:
                    yield (end - begin) / 1e6


def _gfxinfo(adb: Adb, package: str, what: str) -> str | None:
    done = adb.shell(["dumpsys", "gfxinfo", checked_package(package), what])
    return None if done.code or "No process found for" in done.stdout else done.stdout
