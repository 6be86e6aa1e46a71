"""The real Android daemon, as `.ci/unpack_adbd.sh` unpacks it, with an adb server of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemons.processes import free_port, kill_tree, listens, wait_until

UNPACKED = Path(os.environ.get("HETRL_ADBD") or Path.home() / ".cache/hetrl-ci/adbd")
STAND_INS = Path(__file__).parent / "android"


class Adbd:
    """One daemon. `adb` is a program that talks to the tests' own server; `programs` are first on the daemon's PATH."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.serial = f"127.0.0.1:{self.port}"
        self.programs = folder / "programs"
        self.benchncnn = STAND_INS / "benchncnn"
        self.adb = folder / "bin" / "adb"
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        shutil.copytree(STAND_INS, self.programs)
        self.adb.parent.mkdir()
        self.adb.write_text(
            f'#!/bin/sh\nHOME={folder} ANDROID_ADB_SERVER_PORT={free_port()} exec {shutil.which("adb")} "$@"\n'
        )
        self.adb.chmod(0o755)

    def start(self) -> None:
        loader = next(UNPACKED.glob("usr/lib*/ld-linux*.so.*"))
        daemon = UNPACKED / "usr/lib/android-sdk/platform-tools/adbd"
        libraries = [str(path) for path in (*UNPACKED.glob("usr/lib/*-linux-*"), *UNPACKED.glob("usr/lib/*/android"))]
        command = [str(loader), "--library-path", ":".join(libraries), str(daemon)]
        path = f"{self.programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "ADBD_PORT": str(self.port)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: listens(self.port), f"adbd listening ({self._log})")

    def kill(self) -> None:
        """The daemon and all that it runs die at once."""
        if self._process is not None:
            kill_tree(self._process.pid)
            self._process.wait()
            self._process = None

    def stop_server(self) -> None:
        subprocess.run([self.adb, "kill-server"], check=False, capture_output=True)


@contextmanager
def running_adbd(folder: Path) -> Generator[Adbd, None, None]:
    """Start one, or skip the test where that cannot be."""
    if shutil.which("adb") is None or not UNPACKED.exists():
        pytest.skip("needs adb and Android's adbd (.ci/system_packages.sh and .ci/unpack_adbd.sh bring them)")
    daemon = Adbd(folder)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop_server()
        daemon.kill()
