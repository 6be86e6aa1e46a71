"""`adb:SERIAL[?benchncnn=FILE][&app=PACKAGE][&termux=USER]`, and the names that may go to a phone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hetrl.errors import UsageError

EXAMPLE = "write adb:SERIAL?benchncnn=/path/to/benchncnn; `adb devices` lists the serials"
OPTIONS = ("benchncnn", "app", "termux")
# As `adb devices` shows them: numbers of USB devices, emulator-5554, host:port, names of phones found over Wi-Fi.
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_PACKAGE = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)+")  # Android's rule for application ids
LONGEST_PACKAGE = 255


def checked_serial(serial: str) -> str:
    """:raises UsageError: no device has it."""
    if not _SERIAL.fullmatch(serial):
        raise UsageError(f"{serial!r} is no serial of an Android device", EXAMPLE)
    return serial


def checked_package(package: str) -> str:
    """:raises UsageError: no app has it."""
    if not _PACKAGE.fullmatch(package) or len(package) > LONGEST_PACKAGE:
        raise UsageError(f"{package!r} is no app's package", "write com.example.app; `adb shell pm list packages`")
    return package


@dataclass(frozen=True)
class AdbAddress:
    """Which phone, and how plans are measured there.

    :param benchncnn: ncnn's benchmark program, built for the phone: a file of this computer.
    :param app: package of the app whose frames are watched.
    :param termux: user of an sshd in Termux there; then the whole runner runs on the phone.
    :raises UsageError: a part that makes no sense.
    """

    serial: str
    benchncnn: Path | None = None
    app: str | None = None
    termux: str | None = None

    def __post_init__(self) -> None:
        checked_serial(self.serial)
        if self.app is not None:
            checked_package(self.app)
        if self.termux is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", self.termux):
            raise UsageError(f"{self.termux!r} is no user of Termux", "`whoami` there says it")


def parse_adb_address(text: str) -> AdbAddress:
    """Read an address.

    :raises UsageError: it is none.
    """
    scheme, _, rest = text.partition(":")
    if scheme != "adb":
        raise UsageError(f"{text!r} is no address of an Android device", EXAMPLE)
    serial, question, options = rest.partition("?")
    given: dict[str, str] = {}
    for option in options.split("&") if question else []:
        name, _, value = option.partition("=")
        if name not in OPTIONS or name in given or not value:
            raise UsageError(f"{option!r} in {text!r} is no option of an Android device", EXAMPLE)
        given[name] = value
    return AdbAddress(
        serial,
        Path(given["benchncnn"]) if "benchncnn" in given else None,
        given.get("app"),
        given.get("termux"),
    )
