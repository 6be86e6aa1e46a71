"""ncnn: one net, whose layers each say whether they stay on the CPU. It runs its layers one after the other.

Layers keep the model's tensor names: hetrl writes ncnn's files itself (`hetrl.partition.ncnn`), as for its own
measurements.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnx

from hetrl.device_bridge.host.opening import HOST
from hetrl.device_bridge.runner.engines.ncnn import blob_name, library
from hetrl.errors import PlanError
from hetrl.export.base import (
    OF_MODEL,
    Carries,
    Check,
    Claims,
    Exporter,
    Limit,
    Moved,
    Order,
    Tried,
    unit_kind,
    unit_of,
)
from hetrl.export.bundle import Bundle, Refused
from hetrl.export.places import MOST_CORES, Places, cores_of
from hetrl.export.texts import read_json, threads, write_json
from hetrl.export.timing import timed_ms
from hetrl.export.whole import Place, WholeModel, whole_model
from hetrl.graph import OperatorGraph
from hetrl.graph.single import Array
from hetrl.partition import require_engines
from hetrl.partition.ncnn import has_layer, to_layers
from hetrl.partition.ncnn_layer import NO_VULKAN, Layer, Unconvertible, param_text
from hetrl.partition.ncnn_plan import NO_FP16
from hetrl.plan import Axis, Plan

SIDECAR = "ncnn.json"
PARAM, WEIGHTS = "model.param", "model.bin"
BIG_CORES, ALL_CORES = 2, 0  # ncnn::set_cpu_powersave


class BlobEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of the model and its blob; `shape` without the batch of 1."""

    tensor: str
    blob: str
    shape: tuple[int, ...]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an app sets before it loads the net.

    :param powersave: 0 all cores, 2 the big ones.
    :param operators: the layer that does each; operators may have one in common.
    """

    schema: Literal["hetrl.ncnn/1"] = "hetrl.ncnn/1"
    threads: int
    powersave: int
    use_vulkan: bool
    use_fp16: bool
    inputs: tuple[BlobEntry, ...]
    outputs: tuple[BlobEntry, ...]
    operators: dict[str, str]


class Ncnn(Exporter):
    """See the module."""

    name = "ncnn"
    summary = "one ncnn net (.param and .bin) with a feature mask for every layer"
    engines = frozenset({"ncnn"})
    by_precision = True
    packages = {"ncnn": "ncnn", "onnx": "onnx"}
    carries = Carries(
        axes=frozenset({Axis.NONE, Axis.HEIGHT, Axis.OUTPUT_CHANNELS}),
        units=frozenset({"cpu", "gpu"}),
        precisions=frozenset({"fp32", "fp16"}),
        alone={"gpu": "Vulkan device"},
    )

    def claims(self, plan: Plan, graph: OperatorGraph) -> Claims:
        found = super().claims(plan, graph)
        unknown = {node.op_type: node.id for node in graph.nodes if not has_layer(node)}
        limits = [Limit(OF_MODEL, f"ncnn cannot run {name!r}: there is no {kind}") for kind, name in unknown.items()]
        return Claims((*found.refused, *limits), found.left_out)

    def write(self, order: Order, folder: Path) -> None:
        whole = whole_model(order.model.partitioner, order.plan)
        layers = _layers(whole, order.graph)
        masks = [_mask(_place(layer, whole)) for layer in layers]
        (folder / PARAM).write_text(param_text(layers, masks), encoding="utf-8")
        with (folder / WEIGHTS).open("wb") as file:
            for layer in layers:
                if layer.weights:
                    file.write(layer.encode_weights())
        settings = _settings(order, layers, whole)
        write_json(folder / SIDECAR, settings)

    def readme(self, order: Order) -> str:
        read, made = (blob_name(names[0]) for names in (order.graph.inputs, order.graph.outputs))
        vulkan = _has_gpu(order.plan.processors)
        return (
            f"`{SIDECAR}` has the options to set before loading, and all inputs and outputs. In C++:\n\n"
            f"    ncnn::Net net; net.opt.use_vulkan_compute = {str(vulkan).lower()};\n"
            f'    net.load_param("{PARAM}"); net.load_model("{WEIGHTS}");\n'
            "    ncnn::Extractor run = net.create_extractor();\n"
            f'    run.input("{read}", in); run.extract("{made}", out);\n'
        )

    def notes(self, order: Order) -> tuple[str, ...]:
        cpus = [p for p in order.plan.processors if unit_of(p) == "cpu"]
        return (f"{' and '.join(cpus)} are one CPU to a net",) if len(cpus) > 1 else ()

    def load_and_run(self, bundle: Bundle, inputs: Mapping[str, Array], repeats: int) -> Tried:
        require_engines(["ncnn"])
        ncnn = library()

        settings = read_settings(bundle)
        has_vulkan = settings.use_vulkan and ncnn.get_gpu_count() > 0  # looking for devices takes a while
        try:
            net = _open(bundle.folder, settings, has_vulkan)
            outputs = _run(net, settings, inputs)
            samples = timed_ms(lambda: _run(net, settings, inputs), repeats)
        except Exception as error:
            raise Refused(f"ncnn does not take the bundle: {' '.join(str(error).split())[:200]}") from error
        check, moved = _placement(net, settings, bundle, has_vulkan)
        return Tried(outputs=outputs, latency_ms=samples, placement=check, moved=moved)


def read_settings(bundle: Bundle) -> Settings:
    """:raises Refused: the sidecar is malformed, or files are missing."""
    found = read_json(bundle, SIDECAR, Settings)
    processors = bundle.manifest.plan.processors
    if not 0 < found.threads <= MOST_CORES or found.powersave not in (ALL_CORES, BIG_CORES):
        raise Refused(f"{SIDECAR} asks for an odd number of threads, or cores", "export the plan again")
    if (found.use_vulkan, found.use_fp16) != (_has_gpu(processors), _has_fp16(processors)):
        raise Refused(f"{SIDECAR} has other options than the plan gives", "export the plan again")
    if not {PARAM, WEIGHTS} <= {file.path for file in bundle.manifest.files}:
        raise Refused(f"the bundle has no {PARAM} with its {WEIGHTS}", "export the plan again")
    return found


def _layers(whole: WholeModel, graph: OperatorGraph) -> list[Layer]:
    """:raises PlanError: ncnn has no layer for an operator."""
    model = onnx.ModelProto()
    model.CopyFrom(whole.model)
    try:
        return to_layers(model, whole.weights(), {tensor.name: tensor.shape for tensor in graph.tensors})
    except Unconvertible as error:
        raise PlanError(
            "segments", f"ncnn cannot run {error.node!r}: {error.reason}", "choose another format"
        ) from None


def _place(layer: Layer, whole: WholeModel) -> Place | None:
    """That of the last of the operators that a layer does; None for inputs and the like."""
    known = [whole.places[node] for node in layer.nodes if node in whole.places]
    return known[-1] if known else None


def _mask(place: Place | None) -> int:
    if place is None:
        return 0
    unit, _, precision = place.processor.split("/")
    return (0 if unit_kind(unit) == "gpu" else NO_VULKAN) | (NO_FP16 if precision == "fp32" else 0)


def _settings(order: Order, layers: Sequence[Layer], whole: WholeModel) -> Settings:
    processors = order.plan.processors
    cores = {core for name in processors for core in cores_of(order.spec, name)}
    return Settings(
        threads=threads(order.spec, processors),
        powersave=ALL_CORES if cores else BIG_CORES,
        use_vulkan=_has_gpu(processors),
        use_fp16=_has_fp16(processors),
        inputs=tuple(_blob(order.graph, name) for name in order.graph.inputs),
        outputs=tuple(_blob(order.graph, name) for name in order.graph.outputs),
        # The first layer of an operator does its work; what follows may be one with the next operator's.
        operators={n: layer.name for layer in reversed(layers) if layer.type != "Split" for n in layer.nodes},
    )


def _has_gpu(processors: Sequence[str]) -> bool:
    return any(unit_of(name) == "gpu" for name in processors)


def _has_fp16(processors: Sequence[str]) -> bool:
    return any(name.endswith("/fp16") for name in processors)


def _blob(graph: OperatorGraph, name: str) -> BlobEntry:
    return BlobEntry(name, blob_name(name), graph.tensor_by_name[name].shape[1:])


def _open(folder: Path, settings: Settings, has_vulkan: bool) -> Any:
    ncnn = library()

    net = ncnn.Net()
    net.opt.num_threads = settings.threads
    net.opt.use_vulkan_compute = settings.use_vulkan and has_vulkan
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = settings.use_fp16
    if net.load_param(str(folder / PARAM)) != 0 or net.load_model(str(folder / WEIGHTS)) != 0:
        raise RuntimeError("the net cannot be read")
    return net


def _run(net: Any, settings: Settings, inputs: Mapping[str, Array]) -> dict[str, Array]:
    ncnn = library()

    extractor = net.create_extractor()
    for entry in settings.inputs:
        sample = np.ascontiguousarray(inputs[entry.tensor][0])
        if extractor.input(entry.blob, ncnn.Mat(sample).clone()) != 0:
            raise RuntimeError(f"the net has no input {entry.blob!r}")
    outputs = {}
    for entry in settings.outputs:
        status, blob = extractor.extract(entry.blob)
        if status != 0:
            raise RuntimeError(f"the net failed at {entry.blob!r} with status {status}")
        outputs[entry.tensor] = np.array(blob.numpy()).reshape(1, *entry.shape)
    return outputs


_SOFTWARE = 3  # of ncnn's `GpuInfo.type`: a CPU, as Mesa's llvmpipe
_NO_WORK = ("Input", "Split")
_MASK = re.compile(r" 31=(\d+)$")


def _placement(net: Any, settings: Settings, bundle: Bundle, has_vulkan: bool) -> tuple[Check, tuple[Moved, ...]]:
    """What the loaded layers say: those that are for Vulkan and have no Vulkan code run on the CPU."""
    lines = (bundle.folder / PARAM).read_text(encoding="utf-8").splitlines()[2:]
    masks = {words[1]: _MASK.search(line) for line in lines if (words := line.split())}
    stays = {name: bool(int(found[1]) & NO_VULKAN) if found else False for name, found in masks.items()}
    layers = {str(layer.name): layer for layer in net.layers()}
    if set(layers) != set(stays):
        return Check("placement", False, f"ncnn made {len(layers)} layers of {len(stays)}"), ()
    wrong = _elsewhere(bundle.manifest.plan, settings, stays)
    if wrong is None and has_vulkan:
        disobeyed = [name for name, stay in stays.items() if stay and layers[name].support_vulkan]
        wrong = f"ncnn runs {disobeyed[0]!r} with Vulkan all the same" if disobeyed else None
    if wrong is not None:
        return Check("placement", False, wrong), ()
    work = [name for name, layer in layers.items() if layer.type not in _NO_WORK]
    count = sum(stays[name] for name in work)
    check = Check("placement", True, f"{count} of {len(work)} layers stay on the CPU, as planned")
    if not settings.use_vulkan:
        return check, ()
    gpu = next(name for name in bundle.manifest.plan.processors if unit_of(name) == "gpu")
    mine = [layers[name] for name in work if not stays[name]]
    if not has_vulkan:
        return check, (Moved(-1, gpu, "CPU", len(mine), "ncnn sees no Vulkan device here"),)
    refused = [layer for layer in mine if not layer.support_vulkan]
    types = ", ".join(sorted({str(layer.type) for layer in refused}))
    moved = (Moved(-1, gpu, "CPU", len(refused), f"ncnn has no Vulkan code for {types}"),) if refused else ()
    software = _software_device()
    if software and bundle.manifest.plan.device != HOST and len(mine) > len(refused):
        reason = f"the Vulkan device here, {software}, is no GPU"
        moved = (Moved(-1, gpu, "CPU", len(mine) - len(refused), reason), *moved)
    return check, moved


def _software_device() -> str:
    """The name of the Vulkan device that a net takes, if it is a program on the CPU; empty if it is a real one."""
    ncnn = library()

    found = ncnn.get_gpu_info(ncnn.get_default_gpu_index())
    return str(found.device_name()) if found.type() == _SOFTWARE else ""


def _elsewhere(plan: Plan, settings: Settings, stays: Mapping[str, bool]) -> str | None:
    """An operator whose layer stays on the CPU and should not, or the other way round, or that has no layer.

    A net knows a CPU and a GPU: what the plan has on either is right on it.
    """
    places, found = Places(plan), {}
    for operator, layer in settings.operators.items():
        planned = places.processor(operator)
        if layer not in stays:
            return f"{SIDECAR} has the layer {layer!r} for {operator!r}, which is not in the net"
        if planned is not None:
            found[operator] = planned if (unit_of(planned) == "cpu") is stays[layer] else layer
    return places.misplaced(found)


EXPORTER = Ncnn()
