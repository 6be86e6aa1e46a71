"""A device file from measurements of plans that really ran: rates of processors, and what single fusion groups differ by.

Every measured segment on one processor is a row: its time is linear in the processor's numbers (`RooflineCost`), plus a
constant for beginning a segment. What then remains is laid on the fusion groups, as factors on their times
(`Engine.group_factors`). Segments that several processors share tell how much these slow each other down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.recording import Recorded, RecordingHeader
from hetrl.device_bridge.spec import DeviceSpec, Engine, Link, Processor, RooflineCost
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.op_time import roofline_time_ms
from hetrl.errors import MissingExtra, UsageError
from hetrl.graph import OperatorGraph
from hetrl.measurement import SegmentTiming
from hetrl.plan import Segment
from hetrl.plan_check import check_plan

Floats = npt.NDArray[np.float64]
PARAMETERS = tuple(RooflineCost.__struct_fields__)
PRIOR_WEIGHT = 0.03  # a number that no segment tells anything of stays where it was; a measured one hardly notices
FACTOR_WEIGHT = 0.1  # relative to one segment's relative error: how hard factors are held near 1
FACTOR_RANGE = (0.2, 5.0)
CONDITIONS = frozenset({"cold", "cold,ui=none"})  # nothing else runs


@dataclass(frozen=True)
class Row:
    """A measured segment on one processor: its fusion groups and its time."""

    groups: tuple[int, ...]
    ms: float


@dataclass(frozen=True)
class Shared:
    """A measured segment that several processors shared."""

    segment: Segment
    groups: tuple[int, ...]
    ms: float


def calibrated(header: RecordingHeader, records: Sequence[Recorded], graph: OperatorGraph) -> DeviceSpec:
    """The recording's device file with numbers fitted to its measurements.

    :raises UsageError: there are no measurements to learn from.
    :raises MissingExtra: scipy is not installed.
    """
    engine = header.spec.engine(header.engine)
    rows: dict[str, list[Row]] = {p.id: [] for p in engine.processors}
    shared: list[Shared] = []
    for record in records:
        plan = record.plan
        if record.condition not in CONDITIONS or plan.capped or plan.overlap or not record.measurement.ok:
            continue
        members = check_plan(plan, graph)
        timeline = record.measurement.segments
        if len(timeline) != len(members):
            continue
        for segment, groups, timing in zip(plan.segments, members, timeline, strict=True):
            ms = _length_ms(timing)
            if len(segment.parts) == 1:
                rows[segment.processors[0]].append(Row(groups, ms))
            else:
                shared.append(Shared(segment, groups, ms))
    if not any(rows.values()):
        raise UsageError(
            "the recording has no timelines of a machine at rest", "record one: hetrl profile --device ..."
        )
    surrogate = SurrogateDevice(header.spec, graph, header.engine)
    fits = {p.id: _fit(p, number, rows[p.id], surrogate) for number, p in enumerate(engine.processors) if rows[p.id]}
    engine = _with_rates(engine, fits, graph)
    spec = replace(header.spec, engines={**header.spec.engines, header.engine: engine})
    links = _with_contention(engine, shared, SurrogateDevice(spec, graph, header.engine))
    known = tuple(sorted({*engine.calibrated_models, graph.structure_hash}))
    engine = replace(engine, links=links, calibrated_models=known)
    return replace(spec, engines={**spec.engines, header.engine: engine})


def _length_ms(timing: SegmentTiming) -> float:
    return timing.end_ms - timing.start_ms


@dataclass(frozen=True)
class _Fit:
    """One processor's numbers by name, what beginning a segment costs, and a factor for each fusion group."""

    values: Mapping[str, float]
    begin_ms: float
    factors: tuple[float, ...]
    segments: int


def _fit(processor: Processor, number: int, rows: Sequence[Row], surrogate: SurrogateDevice) -> _Fit:
    try:
        from scipy.optimize import nnls
    except ImportError:
        raise MissingExtra("calibration", "calibrate") from None
    features = _features(number, surrogate)  # (groups, parameters)
    ms = np.array([row.ms for row in rows])
    table = np.array([[*features[list(row.groups)].sum(axis=0), 1.0] for row in rows]) / ms[:, None]
    cost = processor.cost
    assert isinstance(cost, RooflineCost)  # machines have no other form
    prior = np.array([*(getattr(cost, name).value for name in PARAMETERS), 0.0])
    scale = np.where(prior > 0, prior, 1.0)
    # Numbers in units of their prior, so that the weight means the same for all.
    held = PRIOR_WEIGHT * np.eye(len(prior))
    found, _ = nnls(
        np.vstack([table * scale, held]), np.concatenate([np.ones(len(ms)), PRIOR_WEIGHT * (prior / scale)])
    )
    values = found * scale
    times = features @ values[:-1]
    return _Fit(
        dict(zip(PARAMETERS, map(float, values[:-1]), strict=True)),
        float(values[-1]),
        _factors(times, float(values[-1]), rows),
        len(rows),
    )


def _features(number: int, surrogate: SurrogateDevice) -> Floats:
    """(groups, parameters): a group's time on a processor is this times the processor's numbers."""
    tables = surrogate.cost_model().tables
    part = tables.parts[number]
    assert part is not None  # a processor of a machine runs something
    whole = part.option == number  # the first options are the single processors
    columns = np.zeros((len(surrogate.graph.groups), len(PARAMETERS)))
    for k, name in enumerate(PARAMETERS):
        unit = RooflineCost(**{n: Quantity(float(n == name), Source.ASSUMED) for n in PARAMETERS})
        columns[part.position[whole], k] = roofline_time_ms(part.shapes, unit)[whole]
    return columns


def _factors(times: Floats, begin_ms: float, rows: Sequence[Row]) -> tuple[float, ...]:
    """Ridge regression of what segments took on what their groups should take, towards factors of 1."""
    n = len(times)
    table = np.zeros((len(rows), n))
    for i, row in enumerate(rows):
        table[i, list(row.groups)] = times[list(row.groups)] / row.ms
    rest = np.array([1 - begin_ms / row.ms for row in rows]) - table.sum(axis=1)
    change = np.linalg.solve(table.T @ table + FACTOR_WEIGHT**2 * np.eye(n), table.T @ rest)
    return tuple(round(float(f), 4) for f in np.clip(1 + change, *FACTOR_RANGE))


def _with_rates(engine: Engine, fits: Mapping[str, _Fit], graph: OperatorGraph) -> Engine:
    def cost(processor: Processor) -> Processor:
        fit = fits.get(processor.id)
        if fit is None:
            return processor
        note = f"{fit.segments} segments of {graph.name}, by hetrl calibrate"
        return replace(
            processor,
            cost=RooflineCost(**{n: Quantity(_digits(v), Source.FITTED, note) for n, v in fit.values.items()}),
        )

    def link(one: Link) -> Link:
        fit = fits.get(one.accelerator)
        if fit is None:
            return one
        note = f"what {fit.segments} segments of {graph.name} begin with, by hetrl calibrate"
        return replace(one, sync_ms=Quantity(_digits(fit.begin_ms), Source.FITTED, note))

    factors = {name: fit.factors for name, fit in fits.items()}
    return replace(
        engine,
        processors=tuple(map(cost, engine.processors)),
        links=tuple(map(link, engine.links)),
        group_factors={**engine.group_factors, graph.structure_hash: factors},
    )


def _with_contention(engine: Engine, shared: Sequence[Shared], surrogate: SurrogateDevice) -> tuple[Link, ...]:
    """Links with the share by which processors that work side by side slow each other down."""
    links = []
    for link in engine.links:
        mine = [s for s in shared if s.segment.processors == (link.accelerator, link.host)]
        ratios = [s.ms / predicted for s in mine if (predicted := _predicted_ms(s, surrogate)) > 0]
        if ratios:
            note = f"{len(ratios)} shared segments, by hetrl calibrate"
            slower = max(0.0, (1 + link.contention.value) * float(np.median(ratios)) - 1)
            link = replace(link, contention=Quantity(_digits(slower), Source.FITTED, note))
        links.append(link)
    return tuple(links)


def _predicted_ms(shared: Shared, surrogate: SurrogateDevice) -> float:
    """The slowest part's work, contention included."""
    from hetrl.device_bridge.surrogate.compile import option_of

    index = {p.id: i for i, p in enumerate(surrogate.engine.processors)}
    option = option_of(shared.segment, index)
    model = surrogate.cost_model()
    if option not in model.tables.options:
        return 0.0
    o = model.tables.options.index(option)
    work_ms = 0.0
    for k in shared.groups:
        offset = shared.groups[-1] - k if model.chained[o] else 0
        work_ms += float(model.tables.time_ms[0, k, o, min(offset, model.tables.time_ms.shape[3] - 1)].max())
    return work_ms * (1 + float(model.contention[o])) if np.isfinite(work_ms) else 0.0


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
