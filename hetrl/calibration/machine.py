"""A device file from measurements of plans that really ran: rates of processors, and by what single groups differ.

What a segment took, from the end of the one before it, is linear in the processor's numbers (`RooflineCost`) and in
those of the links that its operands cross. What then remains is laid on the fusion groups, as factors on their times
(`Engine.group_factors`). Segments that two processors share tell how much these slow each other down. Other programs
make some runs far too slow, so runs far off count less (soft L1 loss, by iterated reweighting).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from hetrl.calibration.machine_runs import Recording, Run, runs_of
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import DeviceSpec, Engine, Link, Processor, RooflineCost
from hetrl.device_bridge.surrogate.conditions import COLD
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.op_time import roofline_time_ms
from hetrl.errors import MissingExtra, UsageError

Floats = npt.NDArray[np.float64]
PARAMETERS = tuple(RooflineCost.__struct_fields__)
PRIOR_WEIGHT = 0.03  # a number that no segment tells anything of stays where it was; a measured one hardly notices
FACTOR_WEIGHT = 0.1  # how hard factors are held near 1, relative to one whole plan's relative error
FACTOR_RANGE = (0.2, 5.0)
ROUNDS = 10  # of reweighting
LEAST_SCALE = 0.02  # relative error that no run is blamed for


class Machine:
    """Recordings of one device, ready to be fitted.

    :raises UsageError: they are of several devices or engine sets, or there is nothing to learn from.
    """

    def __init__(self, recordings: Sequence[Recording]) -> None:
        headers = [recording.header for recording in recordings]
        if not headers:
            raise UsageError("there is no recording", "record one: hetrl profile --device host --model M --out FILE")
        for other in headers[1:]:
            if not other.same_device(headers[0]):
                raise UsageError(
                    f"{other.spec.id} ({other.engine}) is not {headers[0].spec.id} ({headers[0].engine})",
                    "calibrate each device and engine set by itself",
                )
        self.header = headers[-1]
        self.engine = self.header.spec.engine(self.header.engine)
        self.graphs = list({r.graph.structure_hash: r.graph for r in recordings}.values())
        if not all(isinstance(p.cost, RooflineCost) for p in self.engine.processors):
            raise UsageError(
                f"{self.header.spec.id} is no machine that runs plans", "record --device host or ssh://..."
            )
        self._index = {p.id: i for i, p in enumerate(self.engine.processors)}
        self.runs = tuple(
            run
            for model, graph in enumerate(self.graphs)
            for recording in recordings
            if recording.graph.structure_hash == graph.structure_hash
            for run in runs_of(
                model,
                graph,
                self._surrogates[model].cost_model().tables.workload,
                self.engine,
                recording.records,
            )
        )
        if not self.runs:
            raise UsageError(
                "the recording has no timelines of a machine at rest", "record one: hetrl profile --device ..."
            )

    @cached_property
    def _surrogates(self) -> list[SurrogateDevice]:
        return [SurrogateDevice(self.header.spec, graph, self.header.engine) for graph in self.graphs]

    @cached_property
    def _features(self) -> list[list[Floats]]:
        """By model and processor: (groups, parameters) that give times when multiplied with the numbers."""
        count = len(self.engine.processors)
        return [[_features(p, surrogate) for p in range(count)] for surrogate in self._surrogates]

    def fit(self, runs: Sequence[Run]) -> DeviceSpec:
        """The device file, with numbers fitted to some of the runs.

        :raises MissingExtra: scipy is not installed.
        """
        numbers = self._rates(runs)
        size = len(PARAMETERS)
        values = numbers[: size * len(self.engine.processors)].reshape(-1, size)
        moves = numbers[values.size :].reshape(2, -1)
        alone = [row.processor for run in runs for row in run.rows if len(row.segment.parts) == 1]
        counts = [alone.count(p) for p in range(len(values))]
        models = sorted({run.model for run in runs})
        note = f"of {', '.join(self.graphs[m].name for m in models)}, by hetrl calibrate"
        factors = {
            self.graphs[m].structure_hash: {
                processor.id: self._factors(m, p, values[p], moves, runs)
                for p, processor in enumerate(self.engine.processors)
                if counts[p]
            }
            for m in models
        }
        engine = replace(
            self.engine,
            processors=tuple(
                _with_rates(processor, values[p], self._told(p), f"{counts[p]} segments {note}")
                if counts[p]
                else processor
                for p, processor in enumerate(self.engine.processors)
            ),
            links=tuple(
                _with_moves(link, float(moves[0, i]), float(moves[1, i]), note)
                if counts[self._index[link.accelerator]]
                else link
                for i, link in enumerate(self.engine.links)
            ),
            group_factors=factors,
            calibrated_models=tuple(sorted(factors)),
            seen_models=(),
            errors={},
        )
        links = tuple(self._with_contention(link, self.spec(engine), runs, note) for link in engine.links)
        return self.spec(replace(engine, links=links))

    def _told(self, p: int) -> frozenset[str]:
        """The numbers of a processor that the models' operators tell something of."""
        seen = np.any([features[p].any(axis=0) for features in self._features], axis=0)
        return frozenset(name for name, told in zip(PARAMETERS, seen, strict=True) if told)

    def spec(self, engine: Engine) -> DeviceSpec:
        """The recorded device with another version of the engine set."""
        spec = self.header.spec
        return replace(spec, engines={**spec.engines, self.header.engine: engine})

    def _rates(self, runs: Sequence[Run]) -> Floats:
        """Numbers of all processors, then what leaving each accelerator costs, then crossing each link."""
        size, processors, links = len(PARAMETERS), self.engine.processors, self.engine.links
        table, times, weights = [], [], []
        for run in runs:
            for row in run.rows:
                if len(row.segment.parts) == 1:
                    line = np.zeros((len(processors), size))
                    line[row.processor] = self._features[run.model][row.processor][list(row.groups)].sum(axis=0)
                    table.append(np.concatenate([line.ravel(), row.crossings, row.melems]))
                    times.append(row.ms)
                    weights.append(run.weight(row))
        prior = np.array(
            [
                *(getattr(p.cost, name).value for p in processors for name in PARAMETERS),
                *(link.map_ms.value + link.sync_ms.value for link in links),
                *(link.map_ms_per_melem.value for link in links),
            ]
        )
        if not table:
            return prior
        scale = np.where(prior > 0, prior, 1.0)  # in units of their prior, so that its weight means the same for all
        held = PRIOR_WEIGHT * np.eye(len(prior)), PRIOR_WEIGHT * (prior / scale)
        return _robust(np.array(table) * scale, np.array(times), np.array(weights), held, positive=True) * scale

    def _factors(self, model: int, p: int, values: Floats, moves: Floats, runs: Sequence[Run]) -> tuple[float, ...]:
        """Ridge regression of what segments took on what their groups should take, towards factors of 1."""
        times = self._features[model][p] @ values
        table, rest, weights = [], [], []
        for run in runs:
            for row in run.rows:
                if run.model == model and row.processor == p and len(row.segment.parts) == 1:
                    line = np.zeros(len(times))
                    line[list(row.groups)] = times[list(row.groups)]
                    table.append(line)
                    rest.append(row.ms - moves[0] @ row.crossings - moves[1] @ row.melems - line.sum())
                    weights.append(run.weight(row))
        held = FACTOR_WEIGHT * np.eye(len(times)), np.zeros(len(times))
        if not table:
            return (1.0,) * len(times)
        change = _robust(np.array(table), np.array(rest), np.array(weights), held, positive=False)
        return tuple(round(float(f), 4) for f in np.clip(1 + change, *FACTOR_RANGE))

    def _with_contention(self, link: Link, spec: DeviceSpec, runs: Sequence[Run], note: str) -> Link:
        """The link with the share by which its two processors slow each other down."""
        ratios: list[float] = []
        shared = [r for r in runs if any(row.segment.processors == (link.accelerator, link.host) for row in r.rows)]
        devices = [SurrogateDevice(spec, graph, self.header.engine) for graph in self.graphs] if shared else []
        for run in shared:
            steps = devices[run.model].simulate(run.record.plan, COLD).answers.steps
            first = 0
            for row in run.rows:
                last = first + len(row.groups)
                work_ms = float(steps.work_ms[first:last, 0].sum()) / (1 + link.contention.value)
                moved_ms = float(steps.transfer_ms[first:last, 0].sum())
                if row.segment.processors == (link.accelerator, link.host) and work_ms > 0:
                    ratios.append((row.ms - moved_ms) / work_ms)
                first = last
        if not ratios:
            return link
        slower = max(0.0, float(np.median(ratios)) - 1)
        return replace(link, contention=_fitted(slower, f"{len(ratios)} shared segments {note}"))


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


def _robust(table: Floats, times: Floats, weights: Floats, held: tuple[Floats, Floats], *, positive: bool) -> Floats:
    """Weighted regression with soft L1 loss; `held` are rows that always count in full."""
    try:
        from scipy.optimize import nnls
    except ImportError:
        raise MissingExtra("calibration", "calibrate") from None
    trust = np.ones(len(times))
    for _ in range(ROUNDS):
        scaled = trust * weights
        lines = np.vstack([table * scaled[:, None], held[0]])
        goals = np.concatenate([times * scaled, held[1]])
        found: Floats = nnls(lines, goals)[0] if positive else np.linalg.lstsq(lines, goals, rcond=None)[0]
        off = np.abs(table @ found - times) * weights
        width = max(LEAST_SCALE, 1.4826 * float(np.median(off)))  # a normal spread by its median deviation
        trust = (1 + (off / width) ** 2) ** -0.25
    return found


def _with_rates(processor: Processor, values: Floats, told: frozenset[str], note: str) -> Processor:
    numbers = {
        name: _fitted(float(value), note) if name in told else getattr(processor.cost, name)
        for name, value in zip(PARAMETERS, values, strict=True)
    }
    return replace(processor, cost=RooflineCost(**numbers))


def _with_moves(link: Link, leaving_ms: float, ms_per_melem: float, note: str) -> Link:
    sync_ms = max(0.0, leaving_ms - link.map_ms.value)
    return replace(link, sync_ms=_fitted(sync_ms, note), map_ms_per_melem=_fitted(ms_per_melem, note))


def _fitted(value: float, note: str) -> Quantity:
    return Quantity(float(f"{value:.6g}"), Source.FITTED, note)
