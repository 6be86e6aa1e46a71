"""Ways to other devices: programs, phones that are connected, one board or phone."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from hetrl.doctor.finding import Finding, broken, missing, ok
from hetrl.errors import HetrlError

if TYPE_CHECKING:
    from hetrl.device_bridge.adb.address import AdbAddress

TIMEOUT_S = 10.0


def program(name: str, package: str) -> Finding:
    """A program on the PATH."""
    path = shutil.which(name)
    if path is None:
        return missing(name, "not on the PATH", f"apt install {package}")
    return ok(name, path)


def phones() -> Finding:
    """What `adb devices` lists."""
    if shutil.which("adb") is None:
        return missing("phones", "adb is not there to ask")
    try:
        done = subprocess.run(
            ["adb", "devices"], capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return broken("phones", "adb does not answer", "adb kill-server")
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["adb failed"]
        return broken("phones", said[-1], "adb kill-server")
    return judged_phones(done.stdout)


def judged_phones(listing: str) -> Finding:
    """What a listing of `adb devices` means."""
    rows = [line.split("\t", 1) for line in listing.splitlines() if "\t" in line]
    ready = [serial for serial, state in rows if state.strip() == "device"]
    waiting = [f"{serial} is {state.strip()}" for serial, state in rows if state.strip() != "device"]
    if waiting:
        return broken("phones", ", ".join([*ready, *waiting]), "allow USB debugging on the phone's screen")
    if not ready:
        return missing("phones", "none connected", "connect one, with USB debugging on")
    return ok("phones", ", ".join(ready))


def board(address: str) -> tuple[Finding, ...]:
    """A board over ssh: whether a runner can work there."""
    from hetrl.device_bridge.ssh.address import parse_ssh_address
    from hetrl.device_bridge.ssh.channel import SshChannel

    channel = SshChannel(parse_ssh_address(address), patience_s=0.0)
    try:
        seen = channel.connect()
    except HetrlError as error:
        return (broken(address, error.message, error.hint or "", needed=True),)
    finally:
        channel.close()
    version = ".".join(map(str, seen.python))
    found = [ok(address, f"answers, Python {version}", needed=True)]
    if not seen.numpy:
        found.append(missing(f"{address} numpy", "not installed", "there: pip install numpy", needed=True))
    engines = f"{address} engines"
    if seen.engines:
        found.append(ok(engines, ", ".join(seen.engines), needed=True))
    else:
        found.append(missing(engines, "none", "there: pip install onnxruntime, or ncnn", needed=True))
    return tuple(found)


def phone(address: str) -> tuple[Finding, ...]:
    """A phone over adb: what it is, and whether plans can be measured there."""
    from hetrl.device_bridge.adb.adb import Adb
    from hetrl.device_bridge.adb.address import parse_adb_address
    from hetrl.device_bridge.adb.system import capabilities
    from hetrl.device_bridge.channel import ChannelLost

    parsed = parse_adb_address(address)
    adb = Adb(parsed.serial, patience_s=0.0)
    try:
        adb.connect()
        seen = capabilities(adb)
    except (HetrlError, ChannelLost) as error:
        return (broken(address, error.message, error.hint or "", needed=True),)
    words = [seen.model, seen.soc, f"Android {seen.android}", f"{len(seen.cores)} cores", seen.gpu or "GPU unknown"]
    return ok(address, ", ".join(word for word in words if word), needed=True), _way(address, parsed)


def _way(address: str, parsed: AdbAddress) -> Finding:
    """How a plan would run there."""
    check = f"{address} runner"
    if parsed.termux is not None:
        return ok(check, f"Termux, as {parsed.termux}", needed=True)
    if parsed.benchncnn is None:
        hint = f"build ncnn's benchncnn, then: {address}?benchncnn=/path/to/benchncnn"
        return missing(check, "no program measures plans there", hint, needed=True)
    if not parsed.benchncnn.is_file():
        return missing(check, f"{parsed.benchncnn} is no file", "build ncnn's benchncnn for Android", needed=True)
    return ok(check, f"benchncnn, {parsed.benchncnn}", needed=True)
