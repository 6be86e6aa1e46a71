"""From `adb:SERIAL?...` to a phone with a model loaded."""

from __future__ import annotations

from pathlib import Path

import msgspec
import onnx

from hetrl.cache import cache_folder
from hetrl.device_bridge.adb.adb import Adb
from hetrl.device_bridge.adb.address import EXAMPLE, parse_adb_address
from hetrl.device_bridge.adb.benchncnn import Benchncnn, BenchSettings
from hetrl.device_bridge.adb.device import AdbDevice, Protocol
from hetrl.device_bridge.adb.system import Capabilities, capabilities
from hetrl.device_bridge.adb.termux import TermuxChannel
from hetrl.device_bridge.base import Device
from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.channel import ChannelLost
from hetrl.device_bridge.host.opening import calibrated_path, open_machine
from hetrl.device_bridge.spec import DeviceSpec, load_spec
from hetrl.errors import DeviceFailed, UsageError
from hetrl.graph import OperatorGraph
from hetrl.partition import open_source
from hetrl.partition.ncnn_plan import ENGINE, plan_param

BELIEVED = "d1"  # whose numbers stand for a phone's until it is calibrated
MAX_THREADS = 4  # a phone has about as many big cores


def open_adb(rest: str, graph: OperatorGraph, engine: str | None) -> Device:
    """A phone; `rest` is the address without `adb:`.

    :raises UsageError: it is no address, or names nothing that could measure.
    :raises DeviceFailed: the phone does not answer.
    """
    address = parse_adb_address(f"adb:{rest}")
    device_id = f"adb:{address.serial}"
    adb = Adb(address.serial)
    adb.connect()
    if address.termux is not None:
        try:
            channel = TermuxChannel(adb, address.termux)
        except ChannelLost as error:
            raise DeviceFailed(error.message, error.hint) from None
        channel.ssh.connect()
        return open_machine(channel, BlobStore(cache_folder() / "blobs"), device_id, graph, engine)
    if address.benchncnn is None or not address.benchncnn.is_file():
        raise UsageError(f"{device_id} needs ncnn's benchncnn, built for the phone", EXAMPLE)
    try:
        phone = capabilities(adb)
    except ChannelLost as error:
        raise DeviceFailed(error.message, error.hint) from None
    spec = believed_spec(device_id, phone)
    spec.engine(engine)  # refuses a name that it does not have
    model = model_of(graph)
    settings = BenchSettings(threads=max(1, min(MAX_THREADS, len(phone.cores))))
    return AdbDevice(
        spec,
        graph,
        engine or spec.default_engine,
        adb,
        Benchncnn(adb, address.benchncnn, settings),
        lambda plan: plan_param(model, plan, graph),
        Protocol(app=address.app),
    )


def believed_spec(device_id: str, phone: Capabilities) -> DeviceSpec:
    """What is believed of a phone: its calibrated file if there is one, else another phone's numbers, and its name."""
    path = calibrated_path(device_id)
    if path.exists():
        return load_spec(str(path))
    other = load_spec(BELIEVED)
    ncnn = msgspec.structs.replace(other.engine(ENGINE), calibrated_models=(), seen_models=())
    return msgspec.structs.replace(
        other,
        id=device_id,
        phone=phone.model or device_id,
        soc=phone.soc or "unknown",
        default_engine=ENGINE,
        engines={ENGINE: ncnn},
        hardware=None,
        notes=f"not calibrated: numbers of {BELIEVED}",
    )


def model_of(graph: OperatorGraph) -> onnx.ModelProto:
    """The ONNX model behind a graph.

    :raises UsageError: the graph was made in memory.
    """
    origin = graph.origin
    if origin is None:
        raise UsageError(f"{graph.name!r} was made in memory, so its model is not known", "give an ONNX file")
    shapes = {name: graph.tensor_by_name[name].shape for name in graph.inputs}
    # Weights are not looked at: benchncnn makes up its own.
    source, _ = open_source(origin.model if origin.builtin else Path(origin.model), 0, shapes)
    return source.model
