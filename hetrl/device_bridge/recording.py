"""Measurements in a file, to be asked again without the device: `--device replay:FILE`.

The first line says what was measured, each other line holds one measurement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from io import FileIO
from pathlib import Path

import msgspec

from hetrl.condition import Condition
from hetrl.device_bridge.base import Device, DeviceInfo, ReplayDevice
from hetrl.device_bridge.spec import DeviceSpec
from hetrl.errors import PlanError, RunError, UsageError
from hetrl.graph import OperatorGraph
from hetrl.json_lines import open_to_append, whole_lines
from hetrl.measurement import Failure, Measurement, pooled
from hetrl.plan import Plan

SCHEMA = "hetrl.recording/1"


class RecordingHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all measurements of a file are about.

    :param model: the model's name; `structure_sha256` tells whether another one is the same.
    :param spec: the device file that plans were made with.
    """

    schema: str = SCHEMA
    model: str
    structure_sha256: str
    engine: str
    spec: DeviceSpec

    def same_device(self, other: RecordingHeader) -> bool:
        """Whether both are of one device and engine set; its numbers may have been calibrated in between."""
        mine, others = self.spec.engine(self.engine), other.spec.engine(other.engine)
        return (self.spec.id, self.spec.soc, self.engine) == (other.spec.id, other.spec.soc, other.engine) and [
            (p.id, p.cores, p.number) for p in mine.processors
        ] == [(p.id, p.cores, p.number) for p in others.processors]

    def continues(self, other: RecordingHeader) -> bool:
        """Whether measurements of both belong into one file."""
        return self.structure_sha256 == other.structure_sha256 and self.same_device(other)


class Recorded(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One measurement."""

    condition: str
    plan: Plan
    measurement: Measurement


class Recorder(Device):
    """Another device, whose measurements it keeps in a file as they come.

    An existing file of the same model, device and engine set is continued.

    :raises RunError: the file is of something else, damaged, or being written by another process.
    """

    def __init__(self, device: Device, path: Path) -> None:
        self.graph = device.graph
        self.spec = device.spec
        self.engine_name = device.engine_name
        self._device = device
        self._encoder = msgspec.json.Encoder()
        self._file = self._open(path)

    def describe(self) -> DeviceInfo:
        return self._device.describe()

    @property
    def default_condition(self) -> Condition:
        return self._device.default_condition

    def allowing(self, max_output_error: float | None) -> Recorder:
        allowed = copy(self)  # writes to the same file
        allowed._device = self._device.allowing(max_output_error)
        return allowed

    @property
    def notes(self) -> tuple[str, ...]:
        return self._device.notes

    def measure(self, plan: Plan, condition: Condition) -> Measurement:
        answer = self._device.measure(plan, condition)
        self._write([plan], [answer], condition)
        return answer

    def measure_many(self, plans: Sequence[Plan], condition: Condition) -> list[Measurement]:
        answers = self._device.measure_many(plans, condition)
        self._write(plans, answers, condition)
        return answers

    def interleaves(self, condition: Condition) -> bool:
        return self._device.interleaves(condition)

    def compare(self, plans: Sequence[Plan], condition: Condition) -> list[Measurement]:
        if not self.interleaves(condition):
            return [self.measure(plan, condition) for plan in plans]  # each is kept as it comes
        answers = self._device.compare(plans, condition)
        self._write(plans, answers, condition)
        return answers

    def close(self) -> None:
        self._file.close()
        self._device.close()

    def _open(self, path: Path) -> FileIO:
        header = RecordingHeader(
            model=self.graph.name,
            structure_sha256=self.graph.structure_hash,
            engine=self.engine_name,
            spec=self.spec,
        )
        file = open_to_append(path, "wait for it, or give another file")
        try:
            if path.stat().st_size == 0:
                file.write(self._encoder.encode(header) + b"\n")
            elif not header.continues(read_recording(path)[0]):
                raise RunError(f"{path} holds measurements of something else", "give another file")
        except BaseException:
            file.close()
            raise
        return file

    def _write(self, plans: Sequence[Plan], answers: Sequence[Measurement], condition: Condition) -> None:
        for plan, answer in zip(plans, answers, strict=True):
            if answer.error is not None and answer.error.kind is Failure.LOST:
                continue  # says nothing about the plan
            record = Recorded(condition=str(condition), plan=plan, measurement=answer)
            self._file.write(self._encoder.encode(record) + b"\n")


def recorded(device: Device, path: Path) -> Recorder:
    """A device that was just opened, recorded; it is closed if the file will not do.

    :raises RunError: see `Recorder`.
    """
    try:
        return Recorder(device, path)
    except BaseException:
        device.close()
        raise


def read_recording(path: Path) -> tuple[RecordingHeader, list[Recorded]]:
    """The header and all complete measurements of a file; a last line that a crash cut off is left out.

    :raises RunError: it cannot be read, or a complete line is no measurement.
    """
    try:
        lines = whole_lines(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror})", "give a file that --record wrote") from None
    if not lines:
        raise RunError(f"{path} holds no recording", "give a file that --record wrote")
    number = 1
    try:
        header = msgspec.json.decode(lines[0], type=RecordingHeader)
        if header.schema != SCHEMA:
            raise ValueError(f"its schema is {header.schema!r}, not {SCHEMA!r}")
        records, decoder = [], msgspec.json.Decoder(Recorded)
        for number, line in enumerate(lines[1:], start=2):  # noqa: B007 (for the message)
            records.append(decoder.decode(line))
    except (msgspec.MsgspecError, ValueError, RecursionError, PlanError) as error:
        raise RunError(f"{path} is damaged in line {number} ({error})", "record it anew") from None
    return header, records


def pooled_records(records: Iterable[Recorded]) -> list[Recorded]:
    """One record for each plan under each condition, in the order in which they were first measured."""
    same: dict[tuple[str, str], list[Recorded]] = {}
    for record in records:
        same.setdefault((record.plan.key, record.condition), []).append(record)
    return [
        msgspec.structs.replace(several[0], measurement=pooled([record.measurement for record in several]))
        for several in same.values()
    ]


def replay(header: RecordingHeader, records: Iterable[Recorded], graph: OperatorGraph) -> ReplayDevice:
    """A device that answers from a recording.

    Several measurements of one plan are pooled.
    """
    answers = {(record.plan.key, record.condition): record.measurement for record in pooled_records(records)}
    return ReplayDevice(header.spec, graph, answers, header.engine)


def open_replay(rest: str, graph: OperatorGraph, engine: str | None) -> Device:
    """What `replay:FILE` means.

    :raises RunError: see `read_recording`.
    :raises UsageError: it is of another model or engine set.
    """
    if not rest:
        raise UsageError("replay names no file", "write replay:FILE; --record writes one")
    header, records = read_recording(Path(rest))
    if header.structure_sha256 != graph.structure_hash:
        recorded = repr(header.model) if header.model != graph.name else f"another {header.model!r}"
        raise UsageError(f"{rest} was recorded with {recorded}, not with {graph.name!r}", f"add --model {header.model}")
    if engine not in (None, header.engine):
        raise UsageError(f"{rest} was recorded on the engine set {header.engine!r}", f"add --engine {header.engine}")
    return replay(header, records, graph)
