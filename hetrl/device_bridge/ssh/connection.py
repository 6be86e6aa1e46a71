"""Commands on a board through the system's ssh, short ones all over one connection (ControlMaster)."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from hetrl.device_bridge.channel import ChannelLost
from hetrl.device_bridge.remote_names import last_line
from hetrl.device_bridge.ssh.address import SshAddress

CONFIG_VARIABLE = "HETRL_SSH_CONFIG"  # names an ssh configuration file to use instead of the user's own
CONNECT_S = 10
ALIVE_S, ALIVE_COUNT = 5, 3  # a silent board counts as lost after 15 s
PERSIST_S = 600  # how long an unused connection stays, also when hetrl was killed
LONGEST_SOCKET_FOLDER = 60  # characters; a socket's whole path may have about 100
SSH_FAILED = 255  # ssh's exit status for its own failures


class Dropped(ChannelLost):
    """There is no connection, so that trying again may help."""


class SshConnection:
    """One board.

    :param options: further options of ssh, before all of hetrl's own.
    """

    def __init__(self, address: SshAddress, config: Path | None = None, options: Sequence[str] = ()) -> None:
        self.address = address
        named = config or os.environ.get(CONFIG_VARIABLE)
        folder = _socket_folder()
        self.socket_folder = Path(folder)
        port = [] if address.port is None else ["-p", str(address.port)]
        self._ssh = ["ssh", *(["-F", str(named)] if named else []), *options, *port, "-T", "-o", "BatchMode=yes"]
        self._ssh += ["-o", f"ConnectTimeout={CONNECT_S}", "-o", f"ServerAliveInterval={ALIVE_S}"]
        self._ssh += ["-o", f"ServerAliveCountMax={ALIVE_COUNT}", "-o", "ForwardX11=no", "-o", "LogLevel=ERROR"]
        self._shared = ["-o", "ControlMaster=auto", "-o", f"ControlPath={folder}/s"]
        self._shared += ["-o", f"ControlPersist={PERSIST_S}"]
        self._exit = [*self._ssh, *self._shared, "-O", "exit", "--", address.destination]
        self.close = weakref.finalize(self, _leave, self._exit, folder)

    @property
    def alive(self) -> bool:
        """Whether there is a connection that was not seen to drop."""
        if not self.close.alive:
            return False
        check = [*self._ssh, *self._shared, "-O", "check", "--", self.address.destination]
        try:
            return subprocess.run(check, capture_output=True, check=False, timeout=CONNECT_S).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False

    def start(self, script: str, arguments: Sequence[str], *, alone: bool = True) -> subprocess.Popen[bytes]:
        """Start `sh -c script`, with `$1` and so on being the arguments.

        The script is a constant of hetrl's own code; whatever comes from elsewhere is an argument, and quoted. The
        login shell there sees one line, and only the words `exec sh -c` of it unquoted.

        :param alone: over a connection of its own, so that killing the process ends everything. Where it is shared,
            the master holds the process's pipes for as long as the command there runs.
        :raises ChannelLost: ssh is not installed.
        """
        if not self.close.alive:
            raise ChannelLost(f"the connection to {self.address} was closed", "open the device again")
        words = " ".join(shlex.quote(word) for word in (script, "hetrl", *arguments))
        way = ["-o", "ControlMaster=no", "-o", "ControlPath=none"] if alone else self._shared
        command = [*self._ssh, *way, "--", self.address.destination, f"exec sh -c {words}"]
        pipe = subprocess.PIPE
        try:
            return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        except FileNotFoundError:
            raise ChannelLost("ssh is not installed", "sudo apt install openssh-client") from None

    def run(
        self, script: str, arguments: Sequence[str], timeout_s: float, feed: Callable[[IO[bytes]], None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a script to its end; `feed` writes its input.

        :raises Dropped: no connection, or none any more.
        """
        process = self.start(script, arguments, alone=False)
        late = threading.Timer(timeout_s, self._abandon, [process])
        late.start()
        began = time.monotonic()
        try:
            if feed is not None and process.stdin is not None:
                try:
                    feed(process.stdin)
                except BrokenPipeError:  # its answer says why it stopped reading
                    pass
            out, err = _finish(process)
        except BaseException:
            self._abandon(process)
            _finish(process)
            raise
        finally:
            late.cancel()
        if process.returncode and time.monotonic() - began >= timeout_s:
            raise Dropped(f"{self.address} did not answer within {timeout_s:g} s", f"try `{self.address.command} true`")
        if process.returncode == SSH_FAILED or process.returncode < 0:
            raise explain(err, self.address)
        return subprocess.CompletedProcess(script, process.returncode, out, err)

    def _abandon(self, process: subprocess.Popen[bytes]) -> None:
        """End a command and the connection that it is stuck in."""
        try:
            subprocess.run(self._exit, capture_output=True, check=False, timeout=CONNECT_S)
        except (OSError, subprocess.TimeoutExpired):
            pass
        process.kill()

    def skip_noise(self, process: subprocess.Popen[bytes], begin: str, timeout_s: float) -> None:
        """Read a started script's output up to and with the line `begin`.

        :raises Dropped: it ended before, or did not come so far in time.
        """
        late = threading.Timer(timeout_s, process.kill)
        late.start()
        try:
            assert process.stdout is not None
            seen = b""
            while not seen.endswith(f"{begin}\n".encode()):
                # Byte by byte past Python's buffer: whatever follows is for whoever reads the pipe next.
                byte = os.read(process.stdout.fileno(), 1)
                if not byte:
                    raise explain(_finish(process)[1], self.address)
                seen += byte
        finally:
            late.cancel()


def explain(stderr: str, address: SshAddress) -> Dropped:
    """What ssh's own words mean, and what to do."""
    key = f"ssh-keygen -R '[{address.host}]:{address.port}'" if address.port else f"ssh-keygen -R {address.host}"
    port = "" if address.port is None else f"-p {address.port} "
    texts = {
        "HOST IDENTIFICATION HAS CHANGED": ("shows another key than before", f"if that is right: `{key}`"),
        "Host key verification failed": ("is not among your known hosts", f"`{address.command}` asks to add it"),
        "Permission denied (": (
            "takes none of your keys",
            f"`ssh-copy-id {port}{address.destination}` brings one there",
        ),
        "Connection refused": ("refuses the connection", f"is sshd running there? `{address.command} true`"),
        "Could not resolve hostname": ("is a name that nothing resolves", f"try `{address.command} true`"),
    }
    for words, (message, hint) in texts.items():
        if words in stderr:
            return Dropped(f"{address} {message}", hint)
    reason = last_line(stderr) or "the connection was lost"
    return Dropped(f"{address} does not answer ({reason})", f"try `{address.command} true`")


def _finish(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    out, err = process.communicate()
    return out.decode(errors="replace"), err.decode(errors="replace")


def _socket_folder() -> str:
    """A folder that only this user can enter, with a short path."""
    folder = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="hetrl-", dir=folder if len(folder) <= LONGEST_SOCKET_FOLDER else "/tmp")


def _leave(command: list[str], folder: str) -> None:
    try:
        subprocess.run(command, capture_output=True, check=False, timeout=CONNECT_S)
    except (OSError, subprocess.TimeoutExpired):
        pass
    shutil.rmtree(folder, ignore_errors=True)
