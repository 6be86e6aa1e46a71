"""Measured plans as rows to fit a machine's numbers to: one for each segment that ran."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetrl.condition import parse_condition
from hetrl.device_bridge.recording import Recorded, RecordingHeader
from hetrl.device_bridge.spec import Engine
from hetrl.device_bridge.surrogate.conditions import COLD, load_of
from hetrl.device_bridge.surrogate.tables import MELEMS
from hetrl.device_bridge.surrogate.workload import Workload
from hetrl.graph import OperatorGraph
from hetrl.plan import Evidence, Segment
from hetrl.plan_check import check_plan

Floats = npt.NDArray[np.float64]
LEAST_SHARE = 0.01  # of a plan's time, below which a segment's time is as uncertain as if it were so long
FOREIGN_WEIGHT = 0.5  # of a run beside other programs


@dataclass(frozen=True)
class Recording:
    """What a recording file says, with the graph of its model."""

    header: RecordingHeader
    records: tuple[Recorded, ...]
    graph: OperatorGraph


@dataclass(frozen=True)
class Row:
    """One measured segment.

    :param processor: its number, that of the accelerator where two share the segment.
    :param crossings: (links,) how many of its operands left each accelerator's memory.
    :param melems: (links,) 1e6 elements that crossed each link.
    :param ms: from the end of the segment before it; the last one's lasts until the plan's latency.
    """

    segment: Segment
    groups: tuple[int, ...]
    processor: int
    crossings: Floats
    melems: Floats
    ms: float


@dataclass(frozen=True)
class Run:
    """One measured plan; `model` is the number of its recording."""

    model: int
    record: Recorded
    rows: tuple[Row, ...]
    latency_ms: float

    @property
    def key(self) -> str:
        return self.record.plan.key

    def weight(self, row: Row) -> float:
        """Of a row's error in ms: the variance of a time is taken to grow with it, and plans count alike."""
        ms = max(row.ms, LEAST_SHARE * self.latency_ms)
        trusted = FOREIGN_WEIGHT if self.record.measurement.foreign_load else 1.0
        return trusted / float(np.sqrt(ms * self.latency_ms))


def runs_of(
    model: int, graph: OperatorGraph, workload: Workload, engine: Engine, records: Sequence[Recorded]
) -> Iterator[Run]:
    """The runs of one model that the cost model's simplest world holds: nothing else ran, nothing was capped."""
    for record in records:
        if _at_rest(record):
            yield _run(model, graph, workload, engine, record)


def _run(model: int, graph: OperatorGraph, workload: Workload, engine: Engine, record: Recorded) -> Run:
    index = {processor.id: i for i, processor in enumerate(engine.processors)}
    link_of = {index[link.accelerator]: i for i, link in enumerate(engine.links)}
    homes = {tensor: {engine.host} for tensor in workload.inputs}  # where copies of each tensor are
    timeline, latency_ms = record.measurement.segments, record.measurement.latency_ms or 0.0
    scale = latency_ms / timeline[-1].end_ms  # the timeline is of one run, the latency of the median one
    rows, before_ms = [], 0.0
    for segment, groups, timing in zip(record.plan.segments, check_plan(record.plan, graph), timeline, strict=True):
        p = index[segment.processors[0]]
        crossings, melems = np.zeros(len(link_of)), np.zeros(len(link_of))
        for item in (workload.items[group] for group in groups):
            for tensor in (read.tensor for read in item.reads):
                if p in homes[tensor]:
                    continue
                source = engine.host if engine.host in homes[tensor] else min(homes[tensor])
                homes[tensor].add(p)
                for end in {source, p} - {engine.host}:
                    melems[link_of[end]] += workload.elements[tensor] / MELEMS
                if source != engine.host:
                    crossings[link_of[source]] += 1
            homes |= {tensor: {p} for tensor in item.writes}
        rows.append(Row(segment, groups, p, crossings, melems, scale * (timing.end_ms - before_ms)))
        before_ms = timing.end_ms
    for tensor in workload.outputs:  # they end in host memory, which the last segment's time includes
        source = min(homes[tensor])
        if engine.host not in homes[tensor]:
            rows[-1].crossings[link_of[source]] += 1
            rows[-1].melems[link_of[source]] += workload.elements[tensor] / MELEMS
    return Run(model, record, tuple(rows), latency_ms)


def _at_rest(record: Recorded) -> bool:
    plan, measured, condition = record.plan, record.measurement, parse_condition(record.condition)
    if measured.evidence is not Evidence.MEASURED:
        return False
    if condition.ui is not None or load_of(condition) != COLD or not measured.ok or measured.fallbacks:
        return False
    if plan.caps or plan.overlap or plan.stretched or plan.compression.changes:
        return False
    return len(measured.segments) == len(plan.segments) and measured.segments[-1].end_ms > 0
