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
import onnx

from hetrl.export.base import Carries, Check, Claims, Exporter, Limit, Moved, Order, Tried, unit_kind
from hetrl.export.bundle import Bundle, Refused
from hetrl.export.places import copy_weights, cores_of
from hetrl.export.submodels import Reads, count_submodels
from hetrl.export.timing import timed_ms
from hetrl.export.whole import Place, WholeModel, whole_model
from hetrl.graph import OperatorGraph
from hetrl.graph.single import Array
from hetrl.partition import require_engines
from hetrl.plan import Axis, Plan

SIDECAR = "affinity.json"
MODEL = "model.xml"
PLUGINS = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU", "dsp": "NPU"}
PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}  # bfloat16 has 8 bits: 0.4 % a rounding, and many of them


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
    :param submodels: into which HETERO cuts it.
    """

    schema: Literal["hetrl.affinity/1"] = "hetrl.affinity/1"
    devices: tuple[DeviceEntry, ...]
    operators: dict[str, str]
    submodels: int


class OpenVino(Exporter):
    """See the module."""

    name = "openvino"
    summary = "OpenVINO IR with an affinity for every operator, for HETERO"
    engines = frozenset({"openvino"})
    packages = {"onnx": "onnx", "openvino": "openvino"}
    carries = Carries(
        axes=frozenset({Axis.NONE, Axis.HEIGHT, Axis.OUTPUT_CHANNELS}),
        units=frozenset(PLUGINS),
        precisions=frozenset(PRECISIONS),
    )

    def claims(self, plan: Plan, graph: OperatorGraph) -> Claims:
        found = super().claims(plan, graph)
        names = [name for name in plan.processors if self.carries.takes(name) is None]
        plugins = Counter(PLUGINS[unit_kind(name.split("/")[0])] for name in names)
        limits = [
            Limit("segments", f"several processors are one {plugin} to OpenVINO")
            for plugin, count in plugins.items()
            if count > 1 and plugin != "CPU"  # of which there may be several instances
        ]
        return Claims((*found.refused, *limits), found.left_out)

    def write(self, order: Order, folder: Path) -> None:
        require_engines(["openvino"])
        import openvino

        whole = whole_model(order.model.partitioner, order.plan)
        model, places = _with_own_constants(whole)
        devices = _devices(order, Counter(place.processor for place in places.values()))
        by_processor = {device.processor: device.name for device in devices}
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary)
            copy_weights(order.model.store, whole.files, place)
            (place / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
            read = openvino.Core().read_model(place / "model.onnx")
            _name(read, {*places, *(tensor.name for tensor in model.graph.initializer), *order.graph.inputs})
            # Written there and moved, since the IR's files are written in place.
            openvino.save_model(read, place / MODEL, compress_to_fp16=False)
            for name in (MODEL, "model.bin"):
                shutil.move(place / name, folder / name)
        operators = {name: by_processor[p] for name, p in sorted(_all_operators(read, places).items())}
        reads, constants = _wiring(model, order.graph.inputs)
        count = count_submodels(reads, operators, constants) if len(devices) > 1 else 1
        affinity = Affinity(devices=devices, operators=operators, submodels=count)
        (folder / SIDECAR).write_bytes(msgspec.json.format(msgspec.json.encode(affinity), indent=1) + b"\n")

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

    def tolerance(self, plan: Plan) -> float:
        return max(TOLERANCES[name.split("/")[2]] for name in plan.processors)

    def notes(self, order: Order) -> tuple[str, ...]:
        more = [d for d in _devices(order, {}) if d.name != d.plugin]
        return tuple(
            f"{device.processor} is the device {device.name}, another instance of the plugin {device.plugin}"
            for device in more
        )

    def load_and_run(self, bundle: Bundle, inputs: Mapping[str, Array], repeats: int) -> Tried:
        require_engines(["openvino"])
        import openvino

        from hetrl.export.loaders import openvino_bundle

        affinity = read_affinity(bundle)
        core = openvino.Core()
        there = {name.split(".")[0] for name in core.available_devices}
        try:
            compiled = openvino_bundle.load(bundle.folder, core, stand_in=True)
            request = compiled.create_infer_request()
            found = request.infer(dict(inputs), share_inputs=True)
            outputs = {t.name: found[compiled.output(t.name)].copy() for t in bundle.manifest.outputs}
            samples = timed_ms(lambda: request.infer(dict(inputs), share_inputs=True), repeats)
            count = int(compiled.get_property("HETERO_NUMBER_OF_SUBMODELS")) if len(affinity.devices) > 1 else 1
        except Exception as error:  # the runtime has many kinds of its own
            raise Refused(f"OpenVINO does not take the bundle: {' '.join(str(error).split())[:200]}") from error
        right = count == affinity.submodels
        detail = f"{count} submodels" + ("" if right else f", the plan has {affinity.submodels}")
        return Tried(
            outputs=outputs,
            latency_ms=samples,
            placement=Check("placement", right, detail),
            moved=_moved(affinity, there),
        )


def read_affinity(bundle: Bundle) -> Affinity:
    """:raises Refused: it is malformed."""
    try:
        found = msgspec.json.decode((bundle.folder / SIDECAR).read_bytes(), type=Affinity)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(f"{SIDECAR} cannot be read: {error}", "export the plan again") from None
    if not {MODEL, "model.bin"} <= {file.path for file in bundle.manifest.files}:
        raise Refused(f"the bundle has no {MODEL} with its weights", "export the plan again")
    if not set(found.operators.values()) <= {device.name for device in found.devices}:
        raise Refused(f"{SIDECAR} puts operators on devices that it does not list", "export the plan again")
    return found


def _devices(order: Order, operators: Mapping[str, int]) -> tuple[DeviceEntry, ...]:
    """One for each processor; a plugin's second one is another instance of it."""
    found: list[DeviceEntry] = []
    for processor in order.plan.processors:
        unit, _, precision = processor.split("/")
        plugin = PLUGINS[unit_kind(unit)]
        same = sum(device.plugin == plugin for device in found)
        properties = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
        cores = cores_of(order.spec, processor)
        if plugin == "CPU" and cores:
            properties["INFERENCE_NUM_THREADS"] = str(len(cores))
        name = f"{plugin}_{same}" if same else plugin
        found.append(DeviceEntry(name, plugin, processor, properties, operators.get(processor, 0)))
    return tuple(found)


def _with_own_constants(whole: WholeModel) -> tuple[onnx.ModelProto, Mapping[str, Place]]:
    """The model with every constant read on one processor alone: HETERO would make a shared one a submodel."""
    model = onnx.ModelProto()
    model.CopyFrom(whole.model)
    first: dict[str, str] = {}
    tensors = {tensor.name: tensor for tensor in whole.model.graph.initializer}
    made: set[str] = set()
    for node in model.graph.node:
        processor = whole.places[node.name].processor
        for position, name in enumerate(node.input):
            if name not in tensors or first.setdefault(name, processor) == processor:
                continue
            own = f"{name}@{processor}"
            if own not in made:
                made.add(own)
                model.graph.initializer.add().CopyFrom(tensors[name])
                model.graph.initializer[-1].name = own
            node.input[position] = own
    return model, whole.places


def _name(model: Any, known: set[str]) -> None:
    """Operators that the reader made up are named by their number: it counts on from model to model."""
    for number, operator in enumerate(model.get_ordered_ops()):
        if operator.get_friendly_name() not in known or operator.get_type_name() == "Result":
            operator.set_friendly_name(f"{operator.get_type_name().lower()}.{number}")


def _all_operators(model: Any, places: Mapping[str, Place]) -> dict[str, str]:
    """Processor of every operator: what the plan does not name goes with what reads it, or else what it reads."""
    operators = model.get_ordered_ops()
    found = {op.get_friendly_name(): "" for op in operators}
    for name in found:
        if name in places:
            found[name] = places[name].processor
    for operator in reversed(operators):
        name = operator.get_friendly_name()
        targets = [target for output in operator.outputs() for target in output.get_target_inputs()]
        readers = sorted(target.get_node().get_friendly_name() for target in targets)
        found[name] = found[name] or next((found[reader] for reader in readers if found[reader]), "")
    for operator in operators:
        name = operator.get_friendly_name()
        sources = [found[i.get_source_output().get_node().get_friendly_name()] for i in operator.inputs()]
        found[name] = found[name] or next((source for source in sources if source), "")
    nowhere = next(iter(found.values()))
    return {name: processor or nowhere for name, processor in found.items()}


def _wiring(model: onnx.ModelProto, inputs: Sequence[str]) -> tuple[Reads, dict[str, tuple[str, ...]]]:
    """What each node reads of others and of the model's inputs, and which constants."""
    maker = {name: name for name in inputs}
    reads: dict[str, tuple[str, ...]] = dict.fromkeys(inputs, ())
    constants: dict[str, tuple[str, ...]] = {}
    for node in model.graph.node:
        reads[node.name] = tuple(dict.fromkeys(maker[name] for name in node.input if name in maker))
        constants[node.name] = tuple(name for name in node.input if name and name not in maker)
        maker |= {name: node.name for name in node.output if name}
    return reads, constants


def _moved(affinity: Affinity, there: set[str]) -> tuple[Moved, ...]:
    return tuple(
        Moved(-1, d.processor, "CPU", d.operators, f"OpenVINO has no {d.plugin} here; another CPU stands in")
        for d in affinity.devices
        if d.plugin not in there
    )


EXPORTER = OpenVino()
