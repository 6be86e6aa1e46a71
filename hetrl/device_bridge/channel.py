"""The way to a machine that runs a runner: this one, a board over ssh, a phone."""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from hetrl.device_bridge.blobs import BlobStore


class ChannelLost(Exception):
    """The other end does not answer, or cannot do what it must.

    :param message: why, one sentence.
    :param hint: the next command to type.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message = message
        self.hint = hint


class NoSpace(ChannelLost):
    """The other end is there, but its disk is full."""


class Channel(ABC):
    """Starts a runner at the other end, and brings files there. All calls may raise `ChannelLost`."""

    @abstractmethod
    def push(self, names: Sequence[str], store: BlobStore) -> None:
        """Bring these files of the store into the other end's blob folder, unless they are there."""

    @abstractmethod
    def spawn(self) -> subprocess.Popen[bytes]:
        """A new runner, speaking JSON lines on its stdin and stdout."""

    def close(self) -> None:  # noqa: B027
        """Let go of the connection; may be called twice."""


class LocalChannel(Channel):
    """This machine: the runner reads the store itself."""

    def __init__(self, store: BlobStore) -> None:
        self._folder = store.folder

    def push(self, names: Sequence[str], store: BlobStore) -> None:
        missing = [name for name in names if not Path(self._folder / name).exists()]
        if missing:
            raise ChannelLost(f"{missing[0]} is not in {self._folder}")

    def spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "hetrl.device_bridge.runner", str(self._folder)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
