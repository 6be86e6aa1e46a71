"""A runner on a board over ssh: nothing is needed there but Python, numpy and an engine."""

from __future__ import annotations

import errno
import hashlib
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.channel import Channel, ChannelLost, NoSpace
from hetrl.device_bridge.remote_names import checked_name, last_line
from hetrl.device_bridge.runner_archive import build_runner_archive
from hetrl.device_bridge.ssh import far_end
from hetrl.device_bridge.ssh.address import SshAddress
from hetrl.device_bridge.ssh.connection import Dropped, SshConnection
from hetrl.errors import DeviceFailed

WORK_FOLDER = ".cache/hetrl"  # relative to the home folder there
OLDEST_PYTHON = (3, 11)
ANSWER_S = 60.0
SLOWEST_BYTES_PER_S = 100e3  # below this a push counts as stuck
PAUSE_S = 0.5  # between two tries to come back
CHUNK_BYTES = 1 << 20
NO_FOLDER, NO_PYTHON = 81, 82  # exit statuses of the scripts below

T = TypeVar("T")

# $1 work folder, $2 python, $3 far_end.py, $4 what it shall do, $5 folder that is passed to it
_FAR_END = (
    f'mkdir -p "$1/blobs" "$1/runner" && cd "$1" || exit {NO_FOLDER}; '
    f'command -v "$2" >/dev/null || exit {NO_PYTHON}; exec "$2" -c "$3" "$4" "$5"'
)
# $1 work folder, $2 python, $3 file with the number of this channel's last runner, $4 archive. What hung there when
# the connection was lost is ended, with all that it started: sshd gives each command a process group of its own.
_SPAWN = (
    f'cd "$1" || exit {NO_FOLDER}; '
    'if [ -f "runner/$3" ] && read -r p < "runner/$3" && grep -qs "$4" "/proc/$p/cmdline"; then '
    'kill -s KILL -- "-$p" 2>/dev/null || kill -s KILL "$p"; fi; '
    f'echo "$$" > "runner/$3"; echo {far_end.BEGIN}; "$2" -u "runner/$4" blobs; exit $?'
)


class Board(msgspec.Struct, frozen=True):
    """What a board says of itself.

    :param python: its version.
    :param engines: those of the runner's engines that can be imported there.
    """

    python: tuple[int, ...]
    numpy: bool
    engines: tuple[str, ...]
    blobs: tuple[str, ...]
    runners: tuple[str, ...]


class SshChannel(Channel):
    """One board. Connects when it is first needed.

    :param folder: the work folder there, absolute or relative to the home folder.
    :param config: an ssh configuration file instead of the user's own.
    :param options: further options of ssh.
    :param archive: what to run there instead of hetrl's runner, named by its hash.
    :param patience_s: for how long a connection that was lost is tried again.
    """

    def __init__(
        self,
        address: SshAddress,
        *,
        folder: str = WORK_FOLDER,
        config: Path | None = None,
        options: Sequence[str] = (),
        archive: Path | None = None,
        patience_s: float = 20.0,
    ) -> None:
        self.address = address
        self.reconnects = 0  # how often a lost connection came back
        self._connection = SshConnection(address, config, options)
        self._folder = folder
        self._archive = archive
        self._patience_s = patience_s
        self._connected = False  # ever
        self._known: set[str] = set()  # files that are there
        self._token = f"{secrets.token_hex(8)}.pid"

    def connect(self) -> Board:
        """Connect, and see that a runner can work there.

        :raises DeviceFailed: it cannot.
        """
        try:
            return self._look()
        except ChannelLost as error:
            raise DeviceFailed(error.message, error.hint) from None

    def push(self, names: Sequence[str], store: BlobStore) -> None:
        wanted = [checked_name(name) for name in dict.fromkeys(names)]
        if not self._known.issuperset(wanted):
            self._patiently(lambda: self._push_blobs(wanted, store))

    def spawn(self) -> subprocess.Popen[bytes]:
        return self._patiently(self._spawn)

    def close(self) -> None:
        self._connection.close()

    def _spawn(self) -> subprocess.Popen[bytes]:
        board = self._look()  # a runner is started seldom, and mostly because something broke
        with tempfile.TemporaryDirectory() as folder:
            archive = self._archive or build_runner_archive(Path(folder))
            name = checked_name(archive.name)
            if name not in board.runners:
                self._send([archive], "runner")
        process = self._connection.start(_SPAWN, [self._folder, self.address.python, self._token, name])
        self._connection.skip_noise(process, far_end.BEGIN, ANSWER_S)
        return process

    def _push_blobs(self, names: Sequence[str], store: BlobStore) -> None:
        if not (self._connected and self._connection.alive):
            self._look()
        missing = [name for name in names if name not in self._known]
        if missing:
            self._send([store.path(name) for name in missing], "blobs")

    def _look(self) -> Board:
        """Connect if need be; what is there, checked."""
        lost = self._connected and not self._connection.alive
        board = msgspec.convert(self._far_end("probe", ".", ANSWER_S), Board)
        self._connected, self._known = True, set(board.blobs)
        self.reconnects += lost
        python, place = self.address.python, self.address.command
        if board.python < OLDEST_PYTHON:
            version, oldest = (".".join(map(str, v)) for v in (board.python, OLDEST_PYTHON))
            raise ChannelLost(f"{python} on {self.address} is Python {version}, older than {oldest}", self._name_python)
        if not board.numpy or not board.engines:
            missing = "numpy" if not board.numpy else f"any of the engines {', '.join(far_end.ENGINES)}"
            install = "numpy" if board.engines else "numpy onnxruntime"
            raise ChannelLost(
                f"{python} on {self.address} lacks {missing}", f"`{place} {python} -m pip install {install}`"
            )
        return board

    @property
    def _name_python(self) -> str:
        return f"name one: {SshAddress(self.address.host, self.address.user, self.address.port)}?python=/path/to/python"

    def _send(self, paths: Sequence[Path], folder: str) -> None:
        """Bring files into a folder there, each verified by its hash."""

        def feed(stream: IO[bytes]) -> None:
            for path in paths:
                _feed_file(stream, path)

        try:
            size = sum(path.stat().st_size for path in paths)
        except OSError as error:
            raise ChannelLost(f"{error.filename} cannot be read ({error.strerror})") from None
        answer = self._far_end("receive", folder, ANSWER_S + size / SLOWEST_BYTES_PER_S, feed)
        self._known.update(answer["received"])
        if answer["error"] is not None:
            clean = f"`{self.address.command} rm -r {self._folder}/blobs` makes room"
            full = any(f"[Errno {number}]" in answer["error"] for number in (errno.ENOSPC, errno.EDQUOT))
            kind = NoSpace if full else ChannelLost
            raise kind(f"{self.address} cannot keep a file ({answer['error']})", clean)

    def _far_end(
        self, what: str, folder: str, timeout_s: float, feed: Callable[[IO[bytes]], None] | None = None
    ) -> dict[str, Any]:
        program = resources.files(far_end.__package__).joinpath("far_end.py").read_text()
        arguments = [self._folder, self.address.python, program, what, folder]
        done = self._connection.run(_FAR_END, arguments, timeout_s, feed)
        if done.returncode == NO_PYTHON:
            raise ChannelLost(f"{self.address.python} is not on {self.address}", self._name_python)
        if done.returncode == NO_FOLDER:
            raise ChannelLost(
                f"{self.address} lets nobody write to {self._folder} ({last_line(done.stderr)})",
                f"see `{self.address.command} df {self._folder}`",
            )
        begin = f"{far_end.BEGIN}\n"
        _, _, answer = done.stdout.rpartition(begin)
        try:
            return msgspec.json.decode(answer, type=dict[str, Any])
        except msgspec.DecodeError:
            reason = last_line(done.stderr) or f"it ended with {done.returncode}"
            raise ChannelLost(
                f"{self.address.python} on {self.address} does not work ({reason})", f"try `{self.address.command}`"
            ) from None

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do it; where a connection was there once, wait for it to come back."""
        until = time.monotonic() + (self._patience_s if self._connected else 0.0)
        while True:
            try:
                return action()
            except Dropped:
                if time.monotonic() >= until:
                    raise
                time.sleep(PAUSE_S)


def _feed_file(stream: IO[bytes], path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = path.stat().st_size
        stream.write(f"{path.name} {size}\n".encode())
        while size and (data := file.read(min(size, CHUNK_BYTES))):
            stream.write(data)
            digest.update(data)
            size -= len(data)
    stream.write(f"{digest.hexdigest()}\n".encode())
