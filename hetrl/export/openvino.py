"""OpenVINO: one IR, and a file that says per operator on which device HETERO puts it.

An IR does not keep affinities, so they travel beside it. HETERO runs its submodels one after the other.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from hetrl.export.base import (
    Carries,
    Check,
    Exporter,
    Moved,
    Order,
    Tried,
    unit_kind,
)
from hetrl.export.bundle import Bundle, Manifest, Refused, versions_of
from hetrl.export.openvino_ir import NARROW, folded, placed_operators, with_own_constants
from hetrl.export.openvino_places import elsewhere, fewest_pieces, mixed, unnamed
from hetrl.export.places import MOST_CORES, Places, copy_weights, cores_of
from hetrl.export.texts import read_json, write_json
from hetrl.export.timing import timed_ms
from hetrl.export.whole import whole_model
from hetrl.graph.single import Array
from hetrl.partition import require_engines
from hetrl.plan import Axis, Plan

SIDECAR = "affinity.json"
THREADS = "INFERENCE_NUM_THREADS"
_DIGITS = 5  # of a number of threads
MODEL = "model.xml"
PLUGINS = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU", "dsp": "NPU"}
PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


class DeviceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device of HETERO.

    :param operators: how many of the plan's are on it.
    :param name: equal to `plugin` for the plugin's own, first device; further ones are to be registered.
    """

    name: str
    plugin: str
    processor: str
    properties: dict[str, str]
    operators: int


class Affinity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the loader reads.

    :param operators: device by friendly name, of every operator of the IR.
    :param unnamed: operators of the plan that OpenVINO has made part of others.
    :param submodels: into which HETERO cut it when the bundle was made: it loads.
    """

    schema: Literal["hetrl.affinity/1"] = "hetrl.affinity/1"
    devices: tuple[DeviceEntry, ...]
    operators: dict[str, str]
    unnamed: tuple[str, ...]
    submodels: int


class OpenVino(Exporter):
    """See the module."""

    name = "openvino"
    summary = "OpenVINO IR with an affinity for every operator, for HETERO"
    engines = frozenset({"openvino"})
    by_precision = True
    packages = {"onnx": "onnx", "openvino": "openvino"}
    carries = Carries(
        axes=frozenset({Axis.NONE, Axis.HEIGHT, Axis.OUTPUT_CHANNELS}),
        units=frozenset(PLUGINS),
        precisions=frozenset(PRECISIONS),
        alone={"gpu": "GPU", "npu": "NPU", "dsp": "NPU"},  # of the CPU plugin there may be several instances
    )

    def write(self, order: Order, folder: Path) -> None:
        require_engines(["openvino"])
        import openvino

        whole = whole_model(order.model.partitioner, order.plan)
        model = with_own_constants(whole)
        threads = {name: len(cores_of(order.spec, name)) for name in order.plan.processors}
        counts = Counter(place.processor for place in whole.places.values())
        devices = _devices(order.plan.processors, threads, counts)
        by_processor = {device.processor: device.name for device in devices}
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary)
            copy_weights(order.model.store, whole.files, place)
            (place / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
            core = openvino.Core()
            try:
                read = folded(core.read_model(place / "model.onnx"))
            except Exception as error:  # the runtime has many kinds of its own
                raise _not_taken(error) from error
            placed = placed_operators(read, model, whole, order.graph.inputs)
            # Written there and moved, since the IR's files are written in place.
            openvino.save_model(read, place / MODEL, compress_to_fp16=False)
            for name in (MODEL, "model.bin"):
                shutil.move(place / name, folder / name)
        operators = {name: by_processor[processor] for name, processor in sorted(placed.items())}
        lost = unnamed(read, [node.name for node in model.graph.node])
        affinity = Affinity(devices=devices, operators=operators, unnamed=lost, submodels=0)
        write_json(folder / SIDECAR, affinity)
        count = _submodels(_compiled(folder, core), affinity)
        write_json(folder / SIDECAR, replace(affinity, submodels=count))

    def readme(self, order: Order) -> str:
        inputs = ", ".join(f"{name!r}: array" for name in order.graph.inputs)
        return (
            "`hetrl run --print-loader openvino > openvino_bundle.py` writes the loader, a page of Python. Then\n\n"
            "    import openvino_bundle\n"
            "    compiled = openvino_bundle.load('this folder')\n"
            f"    outputs = compiled({{{inputs}}})\n\n"
            "In C++: read `model.xml`, set `affinity` in each operator's rt_info as `affinity.json` says, and compile\n"
            "for `HETERO:` and its devices.\n"
        )

    def notes(self, order: Order) -> tuple[str, ...]:
        more = [d for d in _devices(order.plan.processors, {}, {}) if d.name != d.plugin]
        return tuple(
            f"{device.processor} is the device {device.name}, another instance of the plugin {device.plugin}"
            for device in more
        )

    def quantized(self, folder: Path) -> bool:
        text = (folder / MODEL).read_text(encoding="utf-8")
        narrow = any(f'"{kind}"' in text for kind in NARROW)
        return 'type="FakeQuantize"' in text or (narrow and 'type="MatMul"' in text)

    def load_and_run(self, bundle: Bundle, inputs: Mapping[str, Array], repeats: int) -> Tried:
        require_engines(["openvino"])
        import openvino

        affinity = read_affinity(bundle)
        core = openvino.Core()
        there = {name.split(".")[0] for name in core.available_devices}
        model = _model(bundle, core, affinity)
        compiled = _compiled(bundle.folder, core)
        try:
            request = compiled.create_infer_request()
            found = request.infer(dict(inputs), share_inputs=True)
            outputs = {t.name: found[compiled.output(t.name)].copy() for t in bundle.manifest.outputs}
            samples = timed_ms(lambda: request.infer(dict(inputs), share_inputs=True), repeats)
            count = _submodels(compiled, affinity)
            profiled = _profiled(bundle.folder, core, inputs) if len(affinity.devices) > 1 else ()
        except Exception as error:  # the runtime has many kinds of its own
            raise _not_taken(error) from error
        return Tried(
            outputs=outputs,
            latency_ms=samples,
            placement=_placement(bundle.manifest, affinity, model, count, profiled),
            moved=_moved(affinity, there),
        )


def _model(bundle: Bundle, core: Any, affinity: Affinity) -> Any:
    """:raises Refused: OpenVINO cannot read it, or the sidecar leaves operators out."""
    try:
        model = core.read_model(bundle.folder / MODEL)
    except Exception as error:  # the runtime has many kinds of its own
        raise _not_taken(error) from error
    lost = {operator.get_friendly_name() for operator in model.get_ordered_ops()} - set(affinity.operators)
    if lost:
        raise Refused(f"{SIDECAR} puts {min(lost)!r} nowhere", "export the plan again")
    return model


def _compiled(folder: Path, core: Any, **options: str) -> Any:
    """The bundle, CPUs standing in for what is not here.

    :raises Refused: OpenVINO does not take it.
    """
    from hetrl.export.loaders import openvino_bundle

    try:
        return openvino_bundle.load(folder, core, stand_in=True, **options)
    except Exception as error:  # the runtime has many kinds of its own
        raise _not_taken(error) from error


def _not_taken(error: Exception) -> Refused:
    reason = [line for line in str(error).splitlines() if line.strip()][-1:]
    return Refused(f"OpenVINO does not take the bundle: {' '.join(reason)[:200]}", "export for another runtime")


def _submodels(compiled: Any, affinity: Affinity) -> int:
    return int(compiled.get_property("HETERO_NUMBER_OF_SUBMODELS")) if len(affinity.devices) > 1 else 1


def _profiled(folder: Path, core: Any, inputs: Mapping[str, Array]) -> tuple[str, ...]:
    """Names of the nodes that ran, each with the number of its piece."""
    request = _compiled(folder, core, PERF_COUNT="YES").create_infer_request()
    request.infer(dict(inputs), share_inputs=True)
    return tuple(str(node.node_name) for node in request.profiling_info)


def _placement(manifest: Manifest, affinity: Affinity, model: Any, count: int, profiled: Sequence[str]) -> Check:
    """Every operator marked for the plan's device, and HETERO's own word of the pieces that it made of that."""
    by_device = {device.name: device.processor for device in affinity.devices}
    processors = {name: by_device[device] for name, device in affinity.operators.items()}
    wrong = elsewhere(model, processors, Places(manifest.plan), affinity.unnamed)
    wrong = wrong or mixed(profiled, affinity.operators)
    if wrong is not None:
        return Check("placement", False, wrong)
    fewest, exact = fewest_pieces(model, affinity.operators)
    pieces = f"{count} submodel" + "s" * (count != 1)
    if count < fewest or (exact and count > fewest):
        return Check("placement", False, f"{pieces}, the plan gives {fewest}")
    same_version = manifest.versions.get("openvino") == versions_of({"openvino": "openvino"})["openvino"]
    if count != affinity.submodels and same_version:
        return Check("placement", False, f"{pieces}, there were {affinity.submodels} when the bundle was made")
    given = "as" if exact else f"at least {fewest} of which"
    return Check("placement", True, f"{len(affinity.operators)} operators marked, {pieces}, {given} the plan gives")


def read_affinity(bundle: Bundle) -> Affinity:
    """:raises Refused: it is malformed."""
    found = read_json(bundle, SIDECAR, Affinity)
    if not {MODEL, "model.bin"} <= {file.path for file in bundle.manifest.files}:
        raise Refused(f"the bundle has no {MODEL} with its weights", "export the plan again")
    if not set(found.operators.values()) <= {device.name for device in found.devices}:
        raise Refused(f"{SIDECAR} puts operators on devices that it does not list", "export the plan again")
    if _written(found.devices) != _written(_devices_of(bundle.manifest.plan, found.devices)):
        raise Refused(f"{SIDECAR} has other devices or properties than the plan gives", "export the plan again")
    return found


def _written(devices: Sequence[DeviceEntry]) -> list[tuple[str, str, str, dict[str, str]]]:
    return [(device.name, device.plugin, device.processor, device.properties) for device in devices]


def _devices_of(plan: Plan, given: Sequence[DeviceEntry]) -> tuple[DeviceEntry, ...]:
    """What the plan gives, with the given numbers of threads, which only its device knows."""
    threads = {device.processor: device.properties.get(THREADS, "") for device in given}
    numbers = {name: int(number) for name, number in threads.items() if number.isdecimal() and len(number) < _DIGITS}
    counts = {name: number for name, number in numbers.items() if number <= MOST_CORES}
    return _devices(plan.processors, counts, {})


def _devices(
    processors: Sequence[str], threads: Mapping[str, int], operators: Mapping[str, int]
) -> tuple[DeviceEntry, ...]:
    """One for each processor; a plugin's second one is another instance of it.

    :param threads: of processors that have cores of their own; `operators` how many each has.
    """
    found: list[DeviceEntry] = []
    for processor in processors:
        unit, _, precision = processor.split("/")
        plugin = PLUGINS[unit_kind(unit)]
        same = sum(device.plugin == plugin for device in found)
        properties = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
        if plugin == "CPU" and threads.get(processor):
            properties[THREADS] = str(threads[processor])
        name = f"{plugin}_{same}" if same else plugin
        found.append(DeviceEntry(name, plugin, processor, properties, operators.get(processor, 0)))
    return tuple(found)


def _moved(affinity: Affinity, there: set[str]) -> tuple[Moved, ...]:
    return tuple(
        Moved(-1, d.processor, "CPU", d.operators, f"OpenVINO has no {d.plugin} here; another CPU stands in")
        for d in affinity.devices
        if d.plugin not in there
    )


EXPORTER = OpenVino()
