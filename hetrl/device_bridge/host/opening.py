"""From an address to a machine with a runner: `host`, `ssh://user@board`."""

from __future__ import annotations

import re
from pathlib import Path

from hetrl.cache import cache_folder, data_folder
from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.channel import Channel, LocalChannel
from hetrl.device_bridge.host.device import RunnerDevice
from hetrl.device_bridge.host.loaded import load
from hetrl.device_bridge.host.processors import machine_spec, refreshed
from hetrl.device_bridge.runner_client import RunnerClient
from hetrl.device_bridge.spec import DeviceSpec, load_spec
from hetrl.device_bridge.ssh.address import parse_ssh_address
from hetrl.device_bridge.ssh.channel import SshChannel
from hetrl.errors import DeviceFailed, UsageError
from hetrl.graph import OperatorGraph
from hetrl.measurement import MeasurementError

HOST = "host"


def open_host(rest: str, graph: OperatorGraph, engine: str | None) -> RunnerDevice:
    """This computer.

    :raises UsageError: `host` takes nothing behind a colon.
    """
    if rest not in ("", HOST):
        raise UsageError(f"host:{rest} is no device", "write --device host, or ssh://USER@BOARD for another machine")
    store = BlobStore(cache_folder() / "blobs")
    return open_machine(LocalChannel(store), store, HOST, graph, engine)


def host_spec() -> DeviceSpec:
    """What is known of this computer; no model is loaded.

    :raises DeviceFailed: it has no engine, or its runner does not start.
    """
    store = BlobStore(cache_folder() / "blobs")
    client = RunnerClient(LocalChannel(store), store)
    try:
        return _spec_of(client, HOST)
    finally:
        client.close()


def open_ssh(rest: str, graph: OperatorGraph, engine: str | None) -> RunnerDevice:
    """Another computer; `rest` is the address without `ssh:`.

    :raises UsageError: it is no address.
    :raises DeviceFailed: it does not answer, or has no Python or engine.
    """
    address = parse_ssh_address(f"ssh:{rest}")
    channel = SshChannel(address)
    channel.connect()
    return open_machine(channel, BlobStore(cache_folder() / "blobs"), str(address), graph, engine)


def open_machine(
    channel: Channel, store: BlobStore, device_id: str, graph: OperatorGraph, engine: str | None
) -> RunnerDevice:
    """A machine at the other end of a channel, with a model loaded."""
    client = RunnerClient(channel, store)
    try:
        spec = _spec_of(client, device_id)
        spec.engine(engine)  # refuses a name that it does not have
        return RunnerDevice(spec, graph, engine or spec.default_engine, client, load(graph, store))
    except BaseException:
        client.close()
        raise


def _spec_of(client: RunnerClient, device_id: str) -> DeviceSpec:
    hello = client.hello()
    if isinstance(hello, MeasurementError):
        raise DeviceFailed(f"{device_id} does not answer: {hello.message}", f"hetrl doctor --device {device_id}")
    return known_spec(machine_spec(hello, device_id))


def calibrated_path(device_id: str) -> Path:
    """Where `hetrl calibrate` keeps what it found out about a device."""
    return data_folder() / "devices" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', device_id)}.json"


def known_spec(found: DeviceSpec) -> DeviceSpec:
    """What is known of a machine: a calibrated file if there is one of it, else what was found."""
    path = calibrated_path(found.id)
    return refreshed(load_spec(str(path)), found) if path.exists() else found
