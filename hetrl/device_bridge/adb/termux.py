"""The whole runner on a phone, where Termux has an sshd: ssh through a port that adb forwards."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from hetrl.device_bridge.adb.adb import Adb
from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.channel import Channel, ChannelLost
from hetrl.device_bridge.ssh.address import SshAddress
from hetrl.device_bridge.ssh.channel import WORK_FOLDER, SshChannel

SSHD_PORT = 8022  # Termux's default


class TermuxChannel(Channel):
    """A phone's Termux. The phone is known by its serial, whatever port leads to it.

    :param user: of Termux (`whoami` there).
    :raises ChannelLost, UsageError: the phone is not there; the user makes no sense.
    """

    def __init__(
        self,
        adb: Adb,
        user: str,
        *,
        port: int = SSHD_PORT,
        python: str = "python3",
        folder: str = WORK_FOLDER,
        config: Path | None = None,
        archive: Path | None = None,
    ) -> None:
        self._adb = adb
        self._port = port
        self._local = adb.forward(port)
        # The cable is trusted the first time; afterwards the phone must show the same key.
        options = ("-o", f"HostKeyAlias=hetrl-{adb.serial}", "-o", "StrictHostKeyChecking=accept-new")
        address = SshAddress("127.0.0.1", user, self._local, python)
        self.ssh = SshChannel(address, folder=folder, config=config, options=options, archive=archive)

    def push(self, names: Sequence[str], store: BlobStore) -> None:
        self._forward()
        self.ssh.push(names, store)

    def spawn(self) -> subprocess.Popen[bytes]:
        self._forward()
        return self.ssh.spawn()

    def close(self) -> None:
        self.ssh.close()
        try:
            self._adb.unforward(self._local)
        except ChannelLost:  # the forwarding went with the phone
            pass

    def _forward(self) -> None:
        """Again: whenever adb's server or the phone restarts, forwarded ports are forgotten."""
        self._adb.forward(self._port, self._local)
