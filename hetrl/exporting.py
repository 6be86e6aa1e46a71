"""`hetrl export` from what a user names: the plan's model, its weights, its device, and a format."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import UNSET

from hetrl.cache import cache_folder
from hetrl.compress.planned import compressed_graph
from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.host.opening import HOST, host_spec
from hetrl.device_bridge.spec import DeviceSpec, builtin_names, load_spec
from hetrl.errors import ModelError, UsageError
from hetrl.export.base import Exporter, Limit, Order, find_exporter
from hetrl.export.places import machine_of
from hetrl.export.settled import as_it_is, lowered
from hetrl.export.weighted import Weighted, with_weights
from hetrl.export.writing import refuse_existing, write_bundle
from hetrl.graph import OperatorGraph
from hetrl.objective import Objective
from hetrl.plan import Expected, Plan, load_plan
from hetrl.plan_check import check_plan
from hetrl.zoo import names as zoo_names
from hetrl.zoo.resolve import resolve_model
from hetrl.zoo.source import FileSource, ModelSource, open_source

InputShapes = Mapping[str, tuple[int, ...]]


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What `hetrl export` wrote.

    :param lowered: why the given plan was replaced, empty where it was not.
    :param expected: of the plan that was written; `given` of the user's, where that is another or loses something.
    """

    out: str
    format: str
    files: tuple[str, ...]
    bytes: int
    expected: Expected | None
    left_out: tuple[Limit, ...]
    lowered: tuple[Limit, ...]
    given: Expected | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """What a user names besides plan and format.

    :param model: the plan's model; None where the plan names a built-in one.
    :param weights: a file of weights for it, `seeded_weights` the seed to draw them from.
    :param device: file of the plan's device, where its name does not say where that is.
    :param objective: what a plan has to keep that is found by lowering.
    """

    model: str | Path | None = None
    weights: Path | None = None
    seeded_weights: int | None = None
    device: str | None = None
    input_shapes: InputShapes | None = None
    compressed: Path | None = None
    lower: bool = False
    objective: Objective = Objective()


def export(plan_file: Path, format_name: str, out: Path, asked: Asked) -> Exported:
    """Write a plan as a bundle of a format.

    :raises Infeasible: the format cannot carry the plan, and it was not to be lowered.
    :raises HetrlError: a mistake in one of the arguments.
    """
    exporter = find_exporter(format_name)
    refuse_existing(out)
    plan = load_plan(plan_file)
    graph = model_of(plan, asked.model, asked.input_shapes)
    check_plan(plan, graph)
    smaller = compressed_graph(graph, plan.compression) if plan.compression.changes else graph
    spec = _spec(plan, asked.device)
    source, weighted = None, None
    _refuse_useless(exporter, plan, asked)
    if exporter.needs_weights:
        source = _source(plan, plan_file, graph, asked)
        weighted = _weighted(source, plan, graph, smaller)
    given = Order(plan, smaller, spec, weighted)
    settled = lowered(exporter, given, graph, asked.objective) if asked.lower else as_it_is(exporter, given, graph)
    order, said = settled
    said = dataclasses.replace(
        said, notes=(*_weights_note(asked.seeded_weights, source), *graph.warnings), machine=_machine(plan, spec)
    )
    manifest = write_bundle(exporter, order, said, out)
    return Exported(
        out=str(out),
        format=exporter.name,
        files=tuple(file.path for file in manifest.files),
        bytes=sum(file.bytes for file in manifest.files),
        expected=said.expected,
        left_out=said.left_out,
        lowered=said.lowered,
        given=said.given,
        notes=manifest.notes,
    )


def _weights_note(seed: int | None, source: ModelSource | None) -> tuple[str, ...]:
    if seed is None or source is None:
        return ()
    drawn = sum(source.lacks(tensor) for tensor in source.model.graph.initializer)
    if not drawn:
        return ()
    return (f"{drawn} weights that the model lacks are random numbers, drawn from the seed {seed}",)


def _machine(plan: Plan, spec: DeviceSpec | None) -> str | None:
    return machine_of(spec) if spec is not None and plan.device == HOST else None


def model_of(plan: Plan, model: str | Path | None, input_shapes: InputShapes | None) -> OperatorGraph:
    """The plan's model: the named one, or the built-in one that the plan names.

    :raises UsageError: it is no built-in one.
    """
    shapes = dict(input_shapes) if input_shapes else None
    if model is not None:
        return resolve_model(model, shapes)
    if plan.model.name in zoo_names():
        return resolve_model(plan.model.name, shapes)
    raise UsageError(f"the plan is for {plan.model.name!r}, which is no built-in model", "name its file with --model")


def _spec(plan: Plan, device: str | None) -> DeviceSpec | None:
    """The plan's device: a built-in one, a file, or this computer; None for others.

    :raises UsageError: the file is another device's.
    """
    if device is None and plan.device in builtin_names():
        return load_spec(plan.device)
    if plan.device == HOST and device in (None, HOST):
        return host_spec()
    if device is None:
        return None
    if device == HOST:
        raise UsageError(f"the plan is for {plan.device!r}, not for this computer", "leave --device away")
    spec = load_spec(device)
    if spec.id != plan.device:
        raise UsageError(f"the plan is for {plan.device!r}, {device!r} is {spec.id!r}", "name the plan's own device")
    return spec


def _source(plan: Plan, plan_file: Path, graph: OperatorGraph, asked: Asked) -> ModelSource:
    """The original's weights, or the compressed model's own where the plan was measured with those.

    :raises ModelError: there are none; it names both options that give some.
    """
    if asked.weights is not None and asked.seeded_weights is not None:
        raise UsageError("weights are either given or drawn", "give one of --weights and --seeded-weights")
    artefact = plan.compression.artefact_sha256
    if artefact is not UNSET:
        return _artefact(artefact, asked.compressed or plan_file.parent / "model.onnx", asked.compressed is not None)
    name = asked.model if asked.model is not None else plan.model.name
    shapes = dict(asked.input_shapes) if asked.input_shapes else None
    if asked.weights is not None:
        bare, _ = open_source(name, 0, shapes)
        return with_weights(bare.model, graph.name, asked.weights)
    try:
        source, _ = open_source(name, asked.seeded_weights, shapes)
        if asked.seeded_weights is None:  # else those that are missing are drawn
            for tensor in source.model.graph.initializer:
                if source.lacks(tensor):
                    source.weights(tensor)
    except ModelError as error:
        what = error.message.removesuffix(", without which it cannot run")
        raise ModelError(
            f"{what}, and a bundle holds some",
            "give them with --weights FILE, or draw random ones with --seeded-weights SEED",
        ) from error
    return source


def _refuse_useless(exporter: Exporter, plan: Plan, asked: Asked) -> None:
    """:raises UsageError: options that would do nothing."""
    artefact = plan.compression.artefact_sha256 is not UNSET
    weights = asked.weights is not None or asked.seeded_weights is not None
    if not exporter.needs_weights and (weights or asked.compressed is not None):
        raise UsageError(f"a bundle for {exporter.name} holds no weights", "leave the options for weights away")
    if asked.compressed is not None and not artefact:
        raise UsageError("--compressed is for plans that were measured with a compressed model", "leave it away")
    if artefact and weights:
        raise UsageError("the plan was measured with weights of its own", "name their file with --compressed")


def _artefact(sha256: str, file: Path, named: bool) -> ModelSource:
    """:raises ModelError: the compressed model's file is not there, or another one."""
    hint = "it is the run's model.onnx; name it with --compressed FILE"
    if not file.is_file():
        raise ModelError(f"the plan was measured with a compressed model, and {file} is not there", hint)
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
            raise ModelError(f"{file} is not the compressed model that the plan was measured with", hint)
    return FileSource(file)


def _weighted(source: ModelSource, plan: Plan, graph: OperatorGraph, smaller: OperatorGraph) -> Weighted:
    store = BlobStore(cache_folder() / "blobs")
    if plan.compression.artefact_sha256 is not UNSET:
        return Weighted(source, smaller, plan.compression.shapes, store)
    return Weighted.of(source, graph, smaller, plan.compression.shapes, store)
