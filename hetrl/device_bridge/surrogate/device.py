"""The surrogate as a device: a calibrated model of a phone behind the same seam as a real one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import msgspec
import numpy as np
from msgspec import UNSET

from hetrl.compress.planned import compressed_graph
from hetrl.compression import NO_COMPRESSION, Compression
from hetrl.condition import Condition
from hetrl.device_bridge.base import Device, DeviceInfo, describe_spec
from hetrl.device_bridge.engine_check import check_engine
from hetrl.device_bridge.spec import DeviceSpec, Known, Processor, load_spec
from hetrl.device_bridge.surrogate.compile import Fallen, option_of, schedule_of
from hetrl.device_bridge.surrogate.conditions import COLD, load_of, study_effects, under
from hetrl.device_bridge.surrogate.cost_model import Answers, CostModel
from hetrl.device_bridge.surrogate.intervals import interval_ms, known_as, plan_class
from hetrl.device_bridge.surrogate.process_cap import under_cap
from hetrl.device_bridge.surrogate.schedule import Schedule, batch_of
from hetrl.device_bridge.surrogate.tables import (
    GROUPED_CONV,
    MAX_CHAIN,
    Option,
    build_tables,
    corrected,
    engine_options,
)
from hetrl.device_bridge.surrogate.workload import WorkItem, workload_of
from hetrl.graph import OperatorGraph
from hetrl.measurement import Failure, Fallback, Measurement, SegmentTiming, Utilization
from hetrl.plan import Axis, Evidence, Plan
from hetrl.plan_check import check_plan

RAM_SHARE = 0.5  # of a phone's memory that one app may hold before the system kills it (assumed)


@dataclass(frozen=True)
class Simulated:
    """One plan as the cost model ran it.

    :param names: the plan's segment at each position; a fallback cuts it into several of the schedule.
    """

    model: CostModel
    schedule: Schedule
    fallen: tuple[Fallen, ...]
    answers: Answers
    names: tuple[str, ...]


class SurrogateDevice(Device):
    """Predicts measurements of one model on one engine set of a device file.

    An answer is `calibrated` for a cold device where the model's own measurements are in the engine's fit, else
    `predicted`.
    """

    def __init__(self, spec: DeviceSpec, graph: OperatorGraph, engine: str | None = None) -> None:
        self.spec = spec
        self.graph = graph
        self.engine_name = engine or spec.default_engine
        self.engine = spec.engine(self.engine_name)
        self.options = engine_options(self.engine)
        self._compressed = lru_cache(maxsize=16)(lambda compression: compressed_graph(graph, compression))
        self._models = lru_cache(maxsize=64)(self._build)

    def evidence(self, plan: Plan, condition: Condition) -> Evidence:
        """The word for what the surrogate says; a pruned or stretched model is none of those that were measured."""
        measured = self.graph.structure_hash in self.engine.calibrated_models
        changed = plan.compression.changes or plan.stretched
        calibrated = measured and not changed and load_of(condition) == COLD
        return Evidence.CALIBRATED if calibrated else Evidence.PREDICTED

    def describe(self) -> DeviceInfo:
        return describe_spec(self.spec, self.engine_name, f"surrogate of {self.spec.phone} ({self.spec.soc})")

    @property
    def memory_limit_mb(self) -> float:
        """Peak memory above which a plan fails."""
        return 1e3 * RAM_SHARE * self.spec.ram_gb.value

    def cost_model(
        self,
        compression: Compression = NO_COMPRESSION,
        options: tuple[Option, ...] | None = None,
        condition: Condition = COLD,
    ) -> CostModel:
        """The cost model over the graph's own order, with the standard options or others."""
        return self._models(compression, None, options or self.options, MAX_CHAIN, load_of(condition))

    def measure(self, plan: Plan, condition: Condition) -> Measurement:
        simulated = self.simulate(plan, condition)
        answers, evidence = simulated.answers, self.evidence(plan, condition)
        if not np.isfinite(answers.latency_ms[0]):
            return Measurement.failed(
                Failure.UNSUPPORTED,
                "a split leaves a part without rows or channels, or shares a factored operator",
                evidence,
            )
        if answers.peak_memory_mb[0] > self.memory_limit_mb:
            return Measurement.failed(
                Failure.OUT_OF_MEMORY,
                f"needs {answers.peak_memory_mb[0]:.0f} MB, an app gets {self.memory_limit_mb:.0f} MB",
                evidence,
            )
        answered = self._measurement(simulated)
        interval = self._interval_ms(plan, condition, float(answers.latency_ms[0]))
        return msgspec.structs.replace(answered, evidence=evidence, latency_interval_ms=interval)

    def simulate(self, plan: Plan, condition: Condition) -> Simulated:
        """The plan's schedule and what the cost model answers.

        :raises PlanError: it does not fit the model or the device.
        """
        groups = check_plan(plan, self.graph)
        check_engine(plan, self.engine, self.spec.id)
        order = tuple(group for segment in groups for group in segment)
        index = {p.id: i for i, p in enumerate(self.engine.processors)}
        needed = {option_of(segment, index) for segment in plan.segments}
        options = self.options
        if not needed <= set(options):
            options = (*options[: len(index)], *sorted(needed - set(options[: len(index)]), key=repr))
        split = [len(g) for g, s in zip(groups, plan.segments, strict=True) if s.axis is Axis.HEIGHT]
        chain = max([MAX_CHAIN, *split])
        in_order = None if order == tuple(range(len(order))) else order
        model = self._models(plan.compression.shapes, in_order, options, chain, load_of(condition))
        schedule, fallen = schedule_of(plan, self.engine, options, model.tables.workload, groups)
        batch = batch_of([schedule], len(order), len(index))
        answers = model.evaluate(batch, condition.ui)
        if plan.process_cap is not UNSET:
            answers = under_cap(model, batch, answers, plan.process_cap, condition.ui)
        names = tuple(f"s{number}" for number, segment in enumerate(groups) for _ in segment)
        return Simulated(model, schedule, fallen, answers, names)

    def _interval_ms(self, plan: Plan, condition: Condition, latency_ms: float) -> tuple[float, float] | None:
        known = known_as(self.graph.structure_hash, plan.compression.changes, self.engine)
        if (
            plan.stretched or known.value not in self.engine.errors
        ):  # no errors of its own kind; those of unseen models are no smaller
            known = Known.UNSEEN
        return interval_ms(latency_ms, self.engine, known, plan_class(plan, self.engine), load_of(condition) != COLD)

    def _build(
        self,
        compression: Compression,
        order: tuple[int, ...] | None,
        options: tuple[Option, ...],
        chain: int,
        load: Condition,
    ) -> CostModel:
        if load != COLD:
            cold = self._models(compression, order, options, chain, COLD)
            return CostModel(under(cold.tables, load, study_effects()), self.spec.idle_w.value)
        workload = workload_of(self._compressed(compression), order)
        factors = self.engine.group_factors.get(self.graph.structure_hash, {})
        tables = corrected(build_tables(workload, self.engine, options, chain), factors)
        return CostModel(tables, self.spec.idle_w.value)

    def _measurement(self, simulated: Simulated) -> Measurement:
        model, schedule, answers = simulated.model, simulated.schedule, simulated.answers
        names, fallen = simulated.names, simulated.fallen
        latency = float(answers.latency_ms[0])
        drop = float(answers.frame_drop_rate[0])
        steps = answers.steps
        items = model.tables.workload.items
        processors = self.engine.processors
        segments = []
        for placed in schedule.segments:
            units = tuple(processors[p].id for p in model.tables.options[placed.option].processors)
            begin = float(steps.begin_ms[placed.start, 0])
            moved = float(steps.transfer_ms[placed.start : placed.end + 1, 0].sum())
            segments.append(SegmentTiming(names[placed.start], units, begin, float(steps.end_ms[placed.end, 0]), moved))
        fallbacks = tuple(
            Fallback(
                node=self.graph.group_node_ids(items[k].group)[0],
                reason=f"{_refused(processors[p], items[k])} is not supported by {processors[p].id}; ran on the CPU",
                cost_ms=float(steps.transfer_ms[k, 0] + steps.work_ms[k, 0]),
            )
            for k, p in ((f.position, f.processor) for f in fallen)
        )
        return Measurement(
            evidence=Evidence.PREDICTED,
            latency_ms=latency,
            samples_ms=(latency,),
            peak_memory_mb=float(answers.peak_memory_mb[0]),
            energy_mj=float(answers.energy_mj[0]),
            frame_drop_rate=None if np.isnan(drop) else drop,
            utilization=tuple(
                Utilization(p.id, float(answers.busy_ms[i, 0]) / latency if latency else 0.0)
                for i, p in enumerate(processors)
            ),
            segments=tuple(segments),
            fallbacks=fallbacks,
        )


def _refused(processor: Processor, item: WorkItem) -> str:
    """What of a fusion group a processor does not take, in words."""
    types = item.op_types & set(processor.unsupported) or item.op_types
    groups = item.geometry.groups
    if GROUPED_CONV in processor.unsupported and groups > 1 and not item.geometry.depthwise:
        return f"Conv in {groups} groups"
    return "/".join(sorted(types))


def open_surrogate(address: str, graph: OperatorGraph, engine: str | None = None) -> SurrogateDevice:
    """The surrogate of a built-in device's name or of a device file."""
    return SurrogateDevice(load_spec(address), graph, engine)
