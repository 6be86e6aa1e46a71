"""A real sshd on loopback, with keys, port and configuration of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hetrl.device_bridge.ssh.address import SshAddress
from tests.daemons.processes import free_port, kill_tree, listens, wait_until


class Sshd:
    """One daemon; `config` is for the client (`ssh -F`)."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.user = getpass.getuser()
        self.config = folder / "client_config"
        self.home = folder / "home"
        self.home.mkdir()
        (self.home / ".bashrc").write_text("echo noise of a start-up file\n")
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        for key in ("host_key", "user_key", "other_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        (folder / "authorized_keys").write_bytes((folder / "user_key.pub").read_bytes())
        host_key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        self.config.write_text(self.client_config("user_key", "known_hosts"))
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin yes\n"
            # The login shell's start-up files are the test's own, and noisy.
            f"SetEnv HOME={self.home}\n"
        )

    def client_config(self, key: str, known_hosts: str) -> str:
        return (
            f"IdentityFile {self.folder}/{key}\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {self.folder}/{known_hosts}\nGlobalKnownHostsFile /dev/null\n"
        )

    def address(self, python: str) -> SshAddress:
        return SshAddress("127.0.0.1", self.user, self.port, python)

    def start(self) -> None:
        command = [self._program, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(lambda: listens(self.port), f"sshd listening ({self.folder / 'log'})")

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def kill(self) -> None:
        """The daemon and all its connections die at once."""
        if self._process is not None:
            kill_tree(self._process.pid)
            self._process.wait()
            self._process = None


@contextmanager
def running_sshd(folder: Path) -> Generator[Sshd, None, None]:
    """Start one, or skip the test where that cannot be."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("needs OpenSSH's client and server (.ci/system_packages.sh installs them)")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where root's sshd locks its unprivileged half in
    daemon = Sshd(folder, program)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.kill()
