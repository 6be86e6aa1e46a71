"""ONNX Runtime, the other way: one model whose nodes are annotated, and a session setting that says what goes where.

A preference, not a promise: rules for devices that a session does not have are skipped, one session runs its nodes one
after the other, and with two providers of today some subsets of nodes are refused while the session is made (ONNX
Runtime 1.31, partitioning_utils.cc). Needs 1.25.1 or newer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import onnx

from hetrl.export.base import Carries, Check, Exporter, Moved, Order, Tried, unit_of
from hetrl.export.bundle import Bundle, Refused
from hetrl.export.onnxruntime import CPU, PROVIDERS, check_weights, ran_on
from hetrl.export.places import Places, copy_weights
from hetrl.export.texts import read_json, write_json
from hetrl.export.timing import timed_ms
from hetrl.export.whole import KEYS, annotate, whole_model
from hetrl.fidelity import rounds
from hetrl.graph.single import Array
from hetrl.partition import require_engines
from hetrl.plan import Axis, Plan

MODEL, SIDECAR = "model.onnx", "session.json"
SETTING = "session.layer_assignment_settings"
DEVICES = {"cpu": "cpu", "gpu": "gpu", "npu": "npu", "dsp": "npu"}  # as the setting calls them
ANNOTATION = "layer_ann"


class Session(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an app sets.

    :param config: session configuration entries.
    :param annotations: by processor; a node's is in its metadata, under `layer_ann`.
    """

    schema: Literal["hetrl.session/1"] = "hetrl.session/1"
    config: dict[str, str]
    annotations: dict[str, str]


class AnnotatedOnnxRuntime(Exporter):
    """See the module."""

    name = "onnxruntime-annotated"
    summary = "one annotated ONNX model with layer assignment settings: a preference (onnxruntime --annotate)"
    engines = frozenset({"onnxruntime"})
    packages = {"onnx": "onnx", "onnxruntime": "onnxruntime"}
    carries = Carries(
        axes=frozenset({Axis.NONE, Axis.HEIGHT, Axis.OUTPUT_CHANNELS}),
        units=frozenset(DEVICES),
        precisions=frozenset({"fp32", "fp16", "bf16"}),
    )

    def write(self, order: Order, folder: Path) -> None:
        whole = whole_model(order.model.partitioner, order.plan)
        annotations = {name: f"p{number}" for number, name in enumerate(order.plan.processors)}
        model = onnx.ModelProto()
        model.CopyFrom(whole.model)
        annotate(model, whole.places, {ANNOTATION: annotations})
        (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))
        copy_weights(order.model.store, whole.files, folder)
        session = Session(config={SETTING: _rules(annotations)}, annotations=annotations)
        write_json(folder / SIDECAR, session)

    def readme(self, order: Order) -> str:
        rules = _rules({name: f"p{number}" for number, name in enumerate(order.plan.processors)})
        return (
            "With ONNX Runtime 1.25.1 or newer:\n\n"
            "    options = onnxruntime.SessionOptions()\n"
            f"    options.add_session_config_entry('{SETTING}', '{rules}')\n"
            f"    session = onnxruntime.InferenceSession('{MODEL}', options, providers=[...])\n"
        )

    def notes(self, order: Order) -> tuple[str, ...]:
        return (
            "annotations are a preference: a rule for a device that a session does not have is skipped",
            "one session runs its nodes one after the other, also those on different devices",
            "with two providers ONNX Runtime 1.31 refuses some subsets of nodes, unlike the format onnxruntime",
        )

    def quantized(self, folder: Path) -> bool:
        return rounds(onnx.load(folder / MODEL, load_external_data=False))

    def load_and_run(self, bundle: Bundle, inputs: Mapping[str, Array], repeats: int) -> Tried:
        require_engines(["onnxruntime"])
        import onnxruntime as ort

        settings = read_session(bundle)
        model = onnx.load(bundle.folder / MODEL, load_external_data=False)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # which keeps nodes' names
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        for key, value in settings.config.items():
            options.add_session_config_entry(key, value)
        try:
            session = ort.InferenceSession(str(bundle.folder / MODEL), options, providers=[CPU])
            names = [output.name for output in session.get_outputs()]
            outputs = dict(zip(names, session.run(None, dict(inputs)), strict=True))
            samples = timed_ms(lambda: session.run(None, dict(inputs)), repeats)
        except Exception as error:  # the runtime has many kinds of its own
            raise Refused(f"ONNX Runtime does not take the bundle: {' '.join(str(error).split())[:200]}") from error
        return Tried(
            outputs=outputs,
            latency_ms=samples,
            placement=_annotated(model, settings, bundle.manifest.plan, sum(ran_on(session).values())),
            moved=_moved(model),
        )


def read_session(bundle: Bundle) -> Session:
    """:raises Refused: it is malformed, or asks for more than a placement."""
    found = read_json(bundle, SIDECAR, Session)
    if set(found.annotations) != set(bundle.manifest.plan.processors):
        raise Refused(f"{SIDECAR} names other processors than the plan", "export the plan again")
    if found.config != {SETTING: _rules(found.annotations)}:
        raise Refused(f"{SIDECAR} sets more than where nodes run, or something else", "export the plan again")
    check_weights(bundle.folder / MODEL, {file.path for file in bundle.manifest.files})
    return found


def _notes(node: onnx.NodeProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in node.metadata_props}


def _rules(annotations: Mapping[str, str]) -> str:
    """`device(=annotation, ...);...`: exact matches, each device once."""
    by_device: dict[str, list[str]] = {}
    for processor, annotation in annotations.items():
        by_device.setdefault(DEVICES[unit_of(processor)], []).append(f"={annotation}")
    return ";".join(f"{device}({', '.join(found)})" for device, found in by_device.items())


def _annotated(model: onnx.ModelProto, settings: Session, plan: Plan, assigned: int) -> Check:
    """Whether every node names its processor and its annotation, and the runtime took all of them."""
    processors = {node.name: _notes(node).get(KEYS[0], "") for node in model.graph.node}
    wrong = Places(plan).misplaced(processors)
    if wrong is not None:
        return Check("placement", False, wrong)
    for node in model.graph.node:
        notes = _notes(node)
        if notes.get(ANNOTATION) != settings.annotations.get(notes.get(KEYS[0], "")):
            return Check("placement", False, f"{node.name!r} is not annotated as its processor")
    count = len(model.graph.node)
    right = assigned >= count  # nodes of subgraphs count as well
    return Check("placement", right, f"{min(assigned, count)} of {count} annotated nodes taken by the session")


def _moved(model: onnx.ModelProto) -> tuple[Moved, ...]:
    """On this computer all is the CPU provider's."""
    metadata = [_notes(node) for node in model.graph.node]
    counts = Counter(notes[KEYS[0]] for notes in metadata if KEYS[0] in notes)
    found = []
    for processor, operators in counts.items():
        kind = unit_of(processor)
        if kind != "cpu":
            reason = f"this session has no {' or '.join(PROVIDERS[kind])}"
            found.append(Moved(-1, processor, CPU, operators, reason))
    return tuple(found)


EXPORTER = AnnotatedOnnxRuntime()
