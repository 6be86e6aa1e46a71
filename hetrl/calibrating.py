"""From recordings to a device file that planning believes: `hetrl calibrate`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from hetrl.calibration.machine import Machine
from hetrl.calibration.machine_errors import median_error, unseen_models, unseen_plans, with_errors
from hetrl.calibration.machine_runs import Recording
from hetrl.device_bridge.host.opening import calibrated_path
from hetrl.device_bridge.host.processors import refreshed
from hetrl.device_bridge.recording import RecordingHeader, pooled_records, read_recording
from hetrl.device_bridge.spec import Engine, RooflineCost, load_spec
from hetrl.errors import UsageError
from hetrl.graph import OperatorGraph
from hetrl.zoo.catalog import catalog
from hetrl.zoo.resolve import resolve_model


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """One processor's numbers (`RooflineCost`, ms), what leaving it costs, and how much sharing with it slows both.

    :param segments: how many measured ones it ran alone.
    """

    processor: str
    segments: int
    cost: dict[str, float]
    sync_ms: float | None
    contention: float | None


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What a fit found out.

    :param runs: measurements in the fit, `plans` how many different plans they are of.
    :param median_error: median of |predicted / measured - 1| over plans that fits to the other plans did not see;
        None where there are too few. `model_median_error` over models that fits to the others did not see.
    :param errors: known or not -> plan class -> 90 % of |ln(measured / predicted)|, as the device file has them.
    """

    device: str
    engine: str
    file: str
    models: tuple[str, ...]
    runs: int
    plans: int
    foreign: int
    processors: tuple[Fitted, ...]
    median_error: float | None
    model_median_error: float | None
    errors: dict[str, dict[str, float]]


def calibrate(
    files: Sequence[Path],
    *,
    out: Path | None,
    models: Sequence[str] = (),
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
) -> Calibration:
    """Fit a device file to recordings of one device, and write it.

    :param out: None for where `--device` finds it again.
    :param models: ONNX files of the recorded models that are no built-in ones.
    :raises RunError: a recording cannot be read.
    :raises UsageError: a model is missing, the recordings do not belong together, or there is nothing to learn from.
    :raises MissingExtra: scipy is not installed.
    """
    if out is not None and out.suffix != ".json":
        raise UsageError(f"{out} does not end in .json", "give --out my-device.json")
    given = [resolve_model(model, dict(input_shapes) if input_shapes else None) for model in models]
    machine = Machine([_recording(file, given) for file in files])
    plans, others = unseen_plans(machine, seed), unseen_models(machine)
    name = machine.header.engine
    spec = machine.fit(machine.runs)
    engine = with_errors(spec.engine(name), plans, others)
    spec = replace(spec, engines={**spec.engines, name: engine})
    target = out or calibrated_path(spec.id)
    if out is None and target.exists():  # its other engine sets were calibrated by themselves
        spec = replace(spec, engines={**refreshed(load_spec(str(target)), spec).engines, name: engine})
    _write(target, msgspec.json.format(msgspec.json.encode(spec), indent=1) + b"\n")
    return Calibration(
        device=spec.id,
        engine=name,
        file=str(target),
        models=tuple(graph.name for graph in machine.graphs),
        runs=len(machine.runs),
        plans=len({(run.model, run.key) for run in machine.runs}),
        foreign=sum(run.record.measurement.foreign_load for run in machine.runs),
        processors=_fitted(machine, engine),
        median_error=median_error(plans),
        model_median_error=median_error(others),
        errors={known: {c: q.value for c, q in found.items()} for known, found in engine.errors.items()},
    )


def _write(path: Path, data: bytes) -> None:
    """As a whole or not at all: planning may read it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _recording(file: Path, given: Sequence[OperatorGraph]) -> Recording:
    header, records = read_recording(file)
    return Recording(header, tuple(pooled_records(records)), _graph(file, header, given))


def _graph(file: Path, header: RecordingHeader, given: Sequence[OperatorGraph]) -> OperatorGraph:
    for graph in given:
        if graph.structure_hash == header.structure_sha256:
            return graph
    if header.model in {entry.name for entry in catalog()}:
        graph = resolve_model(header.model)
        if graph.structure_hash == header.structure_sha256:
            return graph
    raise UsageError(f"{file} is of a model {header.model!r} that is not built in", "add --model FILE.onnx")


def _fitted(machine: Machine, engine: Engine) -> tuple[Fitted, ...]:
    links = {link.accelerator: link for link in engine.links}
    found = []
    for number, processor in enumerate(engine.processors):
        assert isinstance(processor.cost, RooflineCost)  # `Machine` refuses others
        alone = sum(row.processor == number and len(row.segment.parts) == 1 for run in machine.runs for row in run.rows)
        link = links.get(processor.id)
        found.append(
            Fitted(
                processor=processor.id,
                segments=alone,
                cost={name: quantity.value for name, quantity in msgspec.structs.asdict(processor.cost).items()},
                sync_ms=link.sync_ms.value if link else None,
                contention=link.contention.value if link and link.splits else None,
            )
        )
    return tuple(found)
