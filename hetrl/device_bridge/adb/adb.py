"""An Android device through the `adb` program: commands, files, forwarded ports.

The program and not a library: its server is needed either way, a command takes a few milliseconds, and the shell's
exit status, output and errors come apart.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hetrl.device_bridge.adb.address import checked_serial
from hetrl.device_bridge.blobs import NAME_DIGITS
from hetrl.device_bridge.channel import ChannelLost, NoSpace
from hetrl.device_bridge.remote_names import checked_name, last_line
from hetrl.errors import DeviceFailed, UsageError

WORK_FOLDER = "/data/local/tmp/hetrl"  # the folder of Android's shell user, where programs may be started
ANSWER_S = 30.0
SLOWEST_BYTES_PER_S = 100e3  # below this a push counts as stuck
PAUSE_S = 0.5  # between two tries to come back
_DONE = re.compile(rb"\nhetrl-exit=(\d{1,3})\n\Z")
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ShellResult:
    """What a command there answered."""

    code: int
    stdout: str
    stderr: str


class TimedOut(ChannelLost):
    """A command did not end in time; the device may be well."""


class Adb:
    """One device.

    :param serial: as `adb devices` shows it.
    :param folder: the work folder there.
    :param program: the adb to use.
    :param patience_s: for how long `reconnect` waits for the device.
    :raises UsageError: a serial that makes no sense.
    """

    def __init__(self, serial: str, folder: str = WORK_FOLDER, program: str = "adb", patience_s: float = 20.0) -> None:
        self.serial = checked_serial(serial)
        self.folder = folder
        self.patience_s = patience_s
        self._program = program
        self._known: set[str] | None = None  # files in the work folder

    def connect(self) -> None:
        """See that the device is there and answers.

        :raises DeviceFailed: it does not.
        """
        try:
            if ":" in self.serial:
                self._network_connect()
            self.shell(["mkdir", "-p", self.folder])
        except ChannelLost as error:
            raise DeviceFailed(error.message, error.hint) from None

    def reconnect(self) -> None:
        """After the device was lost: wait until it is back.

        :raises ChannelLost: it did not come back in time.
        """
        until = time.monotonic() + self.patience_s
        self._known = None
        while True:
            try:
                if ":" in self.serial:
                    # adb says "already connected" of a connection that is dead, until it is told to forget it.
                    self._adb(["disconnect", self.serial], ANSWER_S)
                    self._network_connect()
                self.shell(["true"])
                return
            except ChannelLost:
                if time.monotonic() >= until:
                    raise
                time.sleep(PAUSE_S)

    def shell(self, argv: Sequence[str], timeout_s: float = ANSWER_S) -> ShellResult:
        """Run a program there. Every argument arrives as it is; none is read by the shell.

        :raises ChannelLost: the device is lost; `TimedOut` if the program did not end in time.
        """
        if not argv or argv[0].startswith("-") or any("\0" in word for word in argv):
            raise ValueError(f"{argv!r} is no command")
        # The last line says that the command came to its end: adb's own exit status cannot tell a lost device.
        line = f"{shlex.join(argv)}; code=$?; echo; echo hetrl-exit=$code"
        done = self._adb(["-s", self.serial, "shell", "-n", "-T", line], timeout_s)
        end = _DONE.search(done.stdout)
        err = done.stderr.decode(errors="replace")
        if end is None:
            raise self._explain(err or done.stdout.decode(errors="replace"))
        return ShellResult(int(end[1]), done.stdout[: end.start()].decode(errors="replace"), err)

    def push(self, path: Path) -> str:
        """Bring a file into the work folder, unless it is there.

        :return: its path there, where it is named by its hash and its own ending; it may be executed.
        :raises ChannelLost: the device is lost, or cannot keep the file.
        :raises UsageError: the file cannot be read.
        """
        digest = _sha256(path)
        suffix = path.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,16}", path.suffix) else ""
        name = checked_name(digest[:NAME_DIGITS] + suffix)
        there = f"{self.folder}/{name}"
        if self._known is None:
            self._must(["mkdir", "-p", self.folder])
            self._known = set(self._must(["ls", self.folder]).split("\n"))
        if name in self._known:
            return there
        half = f"{self.folder}/half-{secrets.token_hex(4)}-{name}"
        try:
            self._file_command(
                ["push", str(path.resolve()), half], ANSWER_S + path.stat().st_size / SLOWEST_BYTES_PER_S
            )
            # A backslash before the sum says that the name was written with escapes.
            if self._must(["sha256sum", half]).split(" ")[0].lstrip("\\") != digest:
                raise ChannelLost(
                    f"{path.name} arrived damaged on {self.serial}", f"see `{self._command} shell df /data`"
                )
            self._must(["chmod", "755", half])
            self._must(["mv", "-f", half, there])  # a file that has its name is whole
        except ChannelLost:
            self._forget(half)
            raise
        self._known.add(name)
        return there

    def pull(self, name: str, path: Path) -> None:
        """Fetch a file of the work folder.

        :raises ChannelLost: the device is lost, or has no such file.
        """
        self._file_command(["pull", f"{self.folder}/{checked_name(name)}", str(path.resolve())], ANSWER_S * 10)

    def forward(self, port: int, local: int = 0) -> int:
        """Let a port of this computer lead to one of the device; the local port.

        :param local: the local port to take; 0 for any that is free.
        """
        if not (1 <= port <= 65535 and 0 <= local <= 65535):
            raise UsageError(f"{port} or {local} is no port", "Termux's sshd listens on 8022")
        done = self._adb(["-s", self.serial, "forward", f"tcp:{local}", f"tcp:{port}"], ANSWER_S)
        if done.returncode:
            raise self._explain(done.stderr.decode(errors="replace"))
        return local or int(done.stdout)

    def unforward(self, local: int) -> None:
        """Undo `forward`; that it is gone already does not matter."""
        self._adb(["-s", self.serial, "forward", "--remove", f"tcp:{local}"], ANSWER_S)

    @property
    def _command(self) -> str:
        return f"adb -s {self.serial}"

    def _network_connect(self) -> None:
        said = self._adb(["connect", self.serial], ANSWER_S).stdout.decode(errors="replace")
        if "connected to" not in said:  # its exit status is 0 either way
            raise self._explain(said)

    def _must(self, argv: Sequence[str]) -> str:
        done = self.shell(argv, ANSWER_S * 4)
        if done.code:
            raise self._explain(done.stderr, f"cannot do `{argv[0]}`")
        return done.stdout

    def _forget(self, there: str) -> None:
        try:
            self.shell(["rm", "-f", there])
        except ChannelLost:  # it went with the device
            pass

    def _file_command(self, words: Sequence[str], timeout_s: float) -> None:
        done = self._adb(["-s", self.serial, *words], timeout_s)
        if done.returncode:
            raise self._explain(done.stderr.decode(errors="replace") or done.stdout.decode(errors="replace"))

    def _explain(self, said: str, otherwise: str = "was lost") -> ChannelLost:
        """What adb's own words mean, and what to do."""
        serial = self.serial
        connect = f"`adb connect {serial}`"
        network = ":" in serial
        if "No space left on device" in said:
            return NoSpace(f"{serial} is full", f"`{self._command} shell rm -r {self.folder}` makes room")
        texts = {
            "device unauthorized": ("does not trust this computer", "confirm the question on its screen"),
            "to authenticate": ("does not trust this computer", "confirm the question on its screen"),
            "device offline": (
                "is offline",
                f"`adb disconnect {serial}`, then {connect}" if network else "`adb reconnect`",
            ),
            "no permissions": ("may not be used by you", "`adb devices` says why"),
            f"'{serial}' not found": ("is not there", connect if network else "`adb devices` lists those that are"),
            "connect to daemon": (
                "cannot be reached, for adb's own server does not start",
                "`adb start-server` says why",
            ),
            "to connect": ("refuses the connection", f"is its adbd listening? {connect}"),
        }
        for words, (message, hint) in texts.items():
            if words in said:
                return ChannelLost(f"{serial} {message}", hint)
        reason = last_line(said) or "adb said nothing"
        return ChannelLost(f"{serial} {otherwise} ({reason})", "`adb devices` lists those that are there")

    def _adb(self, words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                [self._program, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=timeout_s,
            )
        except FileNotFoundError:
            raise ChannelLost(f"{self._program} is not installed", "sudo apt install adb") from None
        except subprocess.TimeoutExpired:
            raise TimedOut(f"{self.serial} did not answer within {timeout_s:g} s", "try `adb devices`") from None


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", "name a file of this computer") from None
