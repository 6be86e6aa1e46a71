"""Looks at what real measurements need, and says what to type where something is amiss."""

from __future__ import annotations

from hetrl.doctor.finding import Finding, State

__all__ = ["Finding", "State", "examine"]

HOST = "host"


def examine(device: str | None = None) -> tuple[Finding, ...]:
    """All checks of this computer, and those of a device, where one is named.

    What a surrogate, a recording or another machine does not need counts as not needed.

    :param device: as after `--device`.
    :raises HetrlError: the device's name or file is wrong.
    """
    from hetrl.doctor import engines, machine, packages, remote

    if device is not None and device.startswith("ssh:"):
        return packages.python(), packages.packages(), remote.program("ssh", "openssh-client"), *remote.board(device)
    if device is not None and device.startswith("adb:"):
        return packages.python(), packages.packages(), remote.program("adb", "adb"), *remote.phone(device)
    if device not in (None, HOST):
        return packages.python(), packages.packages(), _file(device or "")
    found = engines.engines()
    return (
        packages.python(),
        packages.packages(),
        *found,
        engines.any_engine(found),
        *engines.vulkan(),
        machine.cpu(),
        machine.cores(),
        machine.memory(),
        machine.clocks(),
        machine.temperatures(),
        machine.quota(),
        machine.foreign_load(),
        machine.cache(),
        *(() if device == HOST else (remote.program("ssh", "openssh-client"), remote.program("adb", "adb"))),
        *(() if device == HOST else (remote.phones(),)),
    )


def _file(device: str) -> Finding:
    """A surrogate, a recording, or a plug-in's device, which only its plug-in can look at."""
    from pathlib import Path

    from hetrl import plugins
    from hetrl.device_bridge.registry import GROUP
    from hetrl.device_bridge.spec import load_spec
    from hetrl.doctor.finding import ok

    scheme, colon, rest = device.partition(":")
    if colon and scheme == "replay":
        from hetrl.device_bridge.recording import read_recording

        header, records = read_recording(Path(rest))
        return ok(device, f"{len(records)} measurements of {header.model} on {header.spec.id}", needed=True)
    if colon and scheme in plugins.names(GROUP):
        return ok(device, f"a plug-in opens it: {scheme}", needed=True)
    spec = load_spec(device)
    return ok(device, f"surrogate of {spec.phone} ({spec.soc})", needed=True)
