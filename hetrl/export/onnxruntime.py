"""ONNX Runtime: one model and one session for each part of each segment, and a file that says who waits for whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import msgspec
import onnx
from msgspec.structs import replace as struct_replace

from hetrl.device_bridge.runner.job import Job, Port
from hetrl.export.base import Carries, Check, Exporter, Moved, Order, Tried, unit_kind
from hetrl.export.bundle import Bundle, Refused
from hetrl.export.places import MOST_CORES, Places, copy_weights, cores_of, share_of
from hetrl.export.texts import read_json, write_json
from hetrl.export.timing import timed_ms
from hetrl.fidelity import rounds
from hetrl.graph.single import Array
from hetrl.partition import require_engines
from hetrl.partition.partitioner import Target
from hetrl.plan import Axis, Plan

SESSIONS = "sessions.json"
CPU = "CPUExecutionProvider"
# Providers by what they drive, the more general first; https://onnxruntime.ai/docs/execution-providers/.
PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "cpu": (),
    "gpu": ("WebGpuExecutionProvider", "CUDAExecutionProvider", "DmlExecutionProvider"),
    "dsp": ("QNNExecutionProvider", "NnapiExecutionProvider"),
    "npu": ("QNNExecutionProvider", "NnapiExecutionProvider", "CoreMLExecutionProvider"),
}


class PortEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output of a session, and which part of which tensor it is (all of it without an axis)."""

    name: str
    tensor: str
    axis: int | None
    start: int
    stop: int


class SessionEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One session.

    :param providers: by preference; those that are not there are left out.
    :param threads: 0 lets the runtime choose.
    :param cores: that its threads may use, where the plan's device is this computer; empty for any.
    :param after: numbers of the sessions that must have ended before.
    :param duty: share of the time that it may work; it idles after each run.
    """

    model: str
    processor: str
    segment: int
    share_pct: int
    providers: tuple[str, ...]
    threads: int
    cores: tuple[int, ...]
    reads: tuple[PortEntry, ...]
    writes: tuple[PortEntry, ...]
    after: tuple[int, ...]
    duty: float


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor that several sessions write parts of."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Sessions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the loader reads."""

    schema: Literal["hetrl.sessions/1"] = "hetrl.sessions/1"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: tuple[TensorEntry, ...]
    sessions: tuple[SessionEntry, ...]


class OnnxRuntime(Exporter):
    """Cut submodels with one session each: placement per session is what every version of the runtime keeps."""

    name = "onnxruntime"
    summary = "cut ONNX models, one session a segment with its own providers and threads"
    engines = frozenset({"onnxruntime"})
    handing_ms = 0.1  # to a thread and back: 0.02 ms where both share a core, 0.1 ms where another one has to wake up
    packages = {"onnx": "onnx", "onnxruntime": "onnxruntime"}
    carries = Carries(
        axes=frozenset({Axis.NONE, Axis.HEIGHT, Axis.OUTPUT_CHANNELS}),
        units=frozenset(PROVIDERS),
        precisions=frozenset({"fp32", "fp16", "bf16"}),
        shares_together=True,
        overlap=True,
        caps=True,
    )

    def write(self, order: Order, folder: Path) -> None:
        job, names = _job(order)
        store = order.model.store
        entries = []
        for number, piece in enumerate(job.pieces):
            path, processor = f"session-{number:04d}.onnx", names[piece.processor]
            model = onnx.load(store.path(piece.files[0]), load_external_data=False)
            share_pct = share_of(order.plan, piece.segment, processor)
            _note_places(model, processor, share_pct, piece.segment)
            (folder / path).write_bytes(model.SerializeToString(deterministic=True))
            copy_weights(store, piece.files[1:], folder)
            entries.append(
                SessionEntry(
                    model=path,
                    processor=processor,
                    segment=piece.segment,
                    share_pct=share_pct,
                    providers=_preferred(processor),
                    threads=len(cores_of(order.spec, processor)),
                    cores=cores_of(order.spec, processor),
                    reads=tuple(map(_entry, piece.reads)),
                    writes=tuple(map(_entry, piece.writes)),
                    after=piece.after,
                    duty=piece.duty,
                )
            )
        shared = {port.tensor for piece in job.pieces for port in piece.writes if port.axis is not None}
        sessions = Sessions(
            inputs=job.inputs,
            outputs=job.outputs,
            tensors=tuple(TensorEntry(t.name, t.shape, t.dtype) for t in job.tensors if t.name in shared),
            sessions=tuple(entries),
        )
        write_json(folder / SESSIONS, sessions)

    def readme(self, order: Order) -> str:
        return (
            "`hetrl run --print-loader > onnxruntime_bundle.py` writes the loader, a page of Python. Then\n\n"
            "    from onnxruntime_bundle import OnnxRuntimeBundle\n"
            "    bundle = OnnxRuntimeBundle('this folder')\n"
            f"    outputs = bundle.run({{{', '.join(f'{name!r}: array' for name in order.graph.inputs)}}})\n\n"
            "In another language: load each model of `sessions.json` with the first of its providers that is there,\n"
            "and run them in order, side by side where `after` allows it.\n"
        )

    def notes(self, order: Order) -> tuple[str, ...]:
        found = []
        low = sorted({p.split("/")[2] for p in order.plan.processors} - {"fp32"})
        if low:
            found.append(f"{' and '.join(low)} is for the provider to calculate in; its CPU provider takes float32")
        return tuple(found)

    def quantized(self, folder: Path) -> bool:
        return any(rounds(onnx.load(path, load_external_data=False)) for path in folder.glob("*.onnx"))

    def load_and_run(self, bundle: Bundle, inputs: Mapping[str, Array], repeats: int) -> Tried:
        require_engines(["onnxruntime"])
        import onnxruntime as ort

        from hetrl.export.loaders.onnxruntime_bundle import OnnxRuntimeBundle

        sessions = read_sessions(bundle)

        def options(entry: dict[str, Any]) -> Any:
            found = ort.SessionOptions()
            found.log_severity_level = 4
            found.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            return found

        try:
            loaded = OnnxRuntimeBundle(bundle.folder, options)
            outputs = loaded.run(inputs)
            samples = timed_ms(lambda: loaded.run(inputs), repeats)
        except Exception as error:  # the runtime has many kinds of its own
            raise Refused(f"ONNX Runtime does not take the bundle: {' '.join(str(error).split())[:200]}") from error
        if not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
            unknown = Check("placement", None, f"ONNX Runtime {ort.__version__} does not say where operators ran")
            return Tried(outputs=outputs, latency_ms=samples, placement=unknown)
        ran = [ran_on(session) for session in loaded.sessions]
        here = frozenset(ort.get_available_providers())
        return Tried(
            outputs=outputs,
            latency_ms=samples,
            placement=_placement(bundle, sessions, ran),
            moved=_moved(sessions, ran, here),
        )


def read_sessions(bundle: Bundle) -> Sessions:
    """:raises Refused: it is malformed, or names what is not in the bundle."""
    files = {file.path for file in bundle.manifest.files}
    sessions = read_json(bundle, SESSIONS, Sessions)
    for number, entry in enumerate(sessions.sessions):
        if entry.processor not in bundle.manifest.plan.processors or entry.providers != _preferred(entry.processor):
            raise Refused(f"{SESSIONS}: session {number} is for other processors or providers than the plan's")
        if entry.model not in files:
            raise Refused(f"{SESSIONS} names {entry.model!r}, which is not in the bundle")
        if any(not 0 <= other < number for other in entry.after):
            raise Refused(f"{SESSIONS}: session {number} waits for a later one")
        if not _as_planned(entry, bundle.manifest.plan):
            raise Refused(f"{SESSIONS}: session {number} has another share or duty than the plan's, or odd threads")
        check_weights(bundle.folder / entry.model, files)
    return sessions


def _as_planned(entry: SessionEntry, plan: Plan) -> bool:
    parts = plan.segments[entry.segment].parts if 0 <= entry.segment < len(plan.segments) else ()
    shares = {part.processor: part.share_pct for part in parts}
    duty = next((cap.duty for cap in plan.caps if cap.processor == entry.processor), 1.0)
    cores = all(0 <= core < MOST_CORES for core in entry.cores)
    few = 0 <= entry.threads <= MOST_CORES and len(entry.cores) <= MOST_CORES
    return shares.get(entry.processor) == entry.share_pct and duty == entry.duty and cores and few


def check_weights(path: Path, files: set[str]) -> None:
    """
    :raises Refused: a model's weights are outside of the bundle: in whatever graph, function or attribute they are.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf has many kinds of its own
        raise Refused(f"{path.name} is no ONNX model: {error}") from None
    for tensor in _tensors(model):
        places = [entry.value for entry in tensor.external_data if entry.key == "location"]
        if tensor.data_location == onnx.TensorProto.EXTERNAL and not set(places) <= files:
            raise Refused(f"{path.name} takes weights from {places}, which are not in the bundle")


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor in a protobuf message, however deep."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if isinstance(value, Iterable) else (value,):
                yield from _tensors(inner)


def _job(order: Order) -> tuple[Job, dict[str, str]]:
    """The plan's job with every processor in ONNX Runtime, and what its names stand for."""
    names = {f"p{number}/onnxruntime/fp32": name for number, name in enumerate(order.plan.processors)}
    new = {name: alias for alias, name in names.items()}
    segments = tuple(
        struct_replace(s, parts=tuple(struct_replace(p, processor=new[p.processor]) for p in s.parts))
        for s in order.plan.segments
    )
    caps = tuple(struct_replace(cap, processor=new[cap.processor]) for cap in order.plan.caps if cap.processor in new)
    plan: Plan = struct_replace(order.plan, engines=("onnxruntime",), segments=segments, caps=caps)
    # Processors of which nothing is known share nothing: their work may overlap.
    targets = {
        alias: Target(cores_of(order.spec, name) or (-1 - number,))
        for number, (alias, name) in enumerate(names.items())
    }
    return order.model.partitioner.job(plan, targets), names


def _preferred(processor: str) -> tuple[str, ...]:
    """Providers for a processor; the CPU's takes what no other one does."""
    unit, engine, _ = processor.split("/")
    own = ("OpenVINOExecutionProvider",) if engine == "openvino" else PROVIDERS[unit_kind(unit)]
    return (*own, CPU)


def _entry(port: Port) -> PortEntry:
    return PortEntry(port.name, port.tensor, port.axis, port.start, port.stop)


def _note_places(model: onnx.ModelProto, processor: str, share_pct: int, segment: int) -> None:
    from hetrl.export.whole import Place, annotate

    for node in model.graph.node:
        node.name = next(name for name in node.output if name)
    place = Place(processor, share_pct, segment, "")
    annotate(model, {node.name: place for node in model.graph.node})


def ran_on(session: Any) -> dict[str, int]:
    """Operators by the provider that took them, as the runtime says."""
    found: dict[str, int] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        found[subgraph.ep_name] = found.get(subgraph.ep_name, 0) + len(subgraph.get_nodes())
    return found


def _placement(bundle: Bundle, sessions: Sessions, ran: list[dict[str, int]]) -> Check:
    """Whether each operator is in a session for its processor, and stayed with a provider that the session names."""
    places, placed = Places(bundle.manifest.plan), {}
    for entry in sessions.sessions:
        model = onnx.load(bundle.folder / entry.model, load_external_data=False)
        for node in model.graph.node:
            name = next(name for name in node.output if name)
            placed[places.part(name, entry.segment, entry.processor)] = entry.processor
    wrong = places.misplaced(placed) or _out_of_order(sessions, bundle.manifest.plan)
    if wrong is not None:
        return Check("placement", False, wrong)
    apart = [e.model for e, found in zip(sessions.sessions, ran, strict=True) if not set(found) <= set(e.providers)]
    if apart:
        return Check("placement", False, f"{', '.join(apart)} ran on providers that the bundle does not name")
    operators = sum(sum(found.values()) for found in ran)
    count = f"{len(ran)} session" + "s" * (len(ran) != 1)
    return Check("placement", True, f"{operators} operators in {count}, each session for the plan's processor")


def _out_of_order(sessions: Sessions, plan: Plan) -> str | None:
    """A tensor whose slices are not made in the order of the plan's parts: a part's model is another one's."""
    makers: dict[str, list[tuple[int, int]]] = {}
    for entry in sessions.sessions:
        names = [part.processor for part in plan.segments[entry.segment].parts]
        for port in entry.writes:
            if port.axis is not None:
                makers.setdefault(port.tensor, []).append((port.start, names.index(entry.processor)))
    wrong = next(
        (tensor for tensor, found in makers.items() if sorted(found) != sorted(found, key=itemgetter(1))), None
    )
    return None if wrong is None else f"the parts of {wrong!r} are not those that the plan has"


def _moved(sessions: Sessions, ran: list[dict[str, int]], here: frozenset[str]) -> tuple[Moved, ...]:
    """What a provider's absence, or its refusal, sent to another one."""
    found = []
    for entry, by_provider in zip(sessions.sessions, ran, strict=True):
        first = next(name for name in entry.providers if name in here)
        own = entry.providers[:-1] or entry.providers  # the last one takes what no other one does
        for provider, operators in by_provider.items():
            if provider in own:
                continue
            reason = f"{first} refused them" if first in own else f"this ONNX Runtime has no {' or '.join(own)}"
            found.append(Moved(entry.segment, entry.processor, provider, operators, reason))
    return tuple(found)


EXPORTER = OnnxRuntime()
