"""A machine made of numbers: a surrogate whose rates differ from what is assumed, and whose timelines are noisy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from hetrl.condition import Condition
from hetrl.device_bridge.base import MockDevice
from hetrl.device_bridge.host.processors import machine_spec
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.runner.protocol import EngineState, Hello
from hetrl.device_bridge.spec import DeviceSpec, RooflineCost
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.graph import OperatorGraph
from hetrl.measurement import Measurement
from hetrl.plan import Evidence, Plan

CONTENTION = 0.25
SLOW_RUN = 5.0  # times as long takes a segment that another program disturbs


def assumed(device_id: str = "host") -> DeviceSpec:
    """What is believed of a machine with two cores and three engines that nobody has measured."""
    return machine_spec(
        Hello(
            pid=1,
            python="3.11",
            platform="Linux",
            machine="x86_64",
            cpu_model="made up",
            cores=(0, 1),
            memory_mb=8000.0,
            engines=tuple(EngineState(name, "1", "") for name in ("onnxruntime", "openvino", "ncnn")),
            caps=(),
            temperatures_c=(),
            clocks_mhz=(),
            killed_for_memory=None,
        ),
        device_id,
    )


@dataclass(frozen=True)
class Truth:
    """A machine: rates up to 2.5 times off what is assumed, and each fusion group off by a factor of its own."""

    seed: int = 0
    spread: float = 0.3

    def spec(self) -> DeviceSpec:
        rng, known = np.random.default_rng(self.seed), assumed()

        def off(number: Quantity) -> Quantity:
            return Quantity(number.value * float(rng.uniform(0.4, 2.5)), Source.MEASURED)

        engine = known.engine("host")
        processors = tuple(
            replace(p, cost=RooflineCost(**{n: off(getattr(p.cost, n)) for n in RooflineCost.__struct_fields__}))
            for p in engine.processors
        )
        links = tuple(
            replace(
                link,
                sync_ms=off(link.sync_ms),
                map_ms_per_melem=Quantity(0.3, Source.MEASURED),
                contention=Quantity(CONTENTION if link.splits else 0.0, Source.MEASURED),
            )
            for link in engine.links
        )
        return replace(known, engines={**known.engines, "host": replace(engine, processors=processors, links=links)})

    def surrogate(self, graph: OperatorGraph) -> SurrogateDevice:
        """What the machine does with a model when nothing disturbs it."""
        rng, spec = np.random.default_rng(self.seed + 1), self.spec()
        engine = spec.engine("host")
        factors = {
            p.id: tuple(map(float, np.exp(rng.normal(0, self.spread, len(graph.groups))))) for p in engine.processors
        }
        engine = replace(engine, group_factors={graph.structure_hash: factors})
        return SurrogateDevice(replace(spec, engines={**spec.engines, "host": engine}), graph, "host")

    def device(self, graph: OperatorGraph, noise: float = 0.05, disturbed: float = 0.05) -> MockDevice:
        """The machine as it is measured: each segment's time is noisy, and some are far too long."""
        rng, real = np.random.default_rng(self.seed + 2), self.surrogate(graph)

        def answer(plan: Plan, condition: Condition) -> Measurement:
            said = real.measure(plan, condition)
            segments, now, before = [], 0.0, 0.0
            for segment in said.segments:
                slower = float(np.exp(rng.normal(0, noise))) * (SLOW_RUN if rng.random() < disturbed else 1.0)
                begin, now = now, now + (segment.end_ms - before) * slower
                before = segment.end_ms
                segments.append(replace(segment, start_ms=begin, end_ms=now))
            return Measurement(evidence=Evidence.MEASURED, latency_ms=now, samples_ms=(now,), segments=tuple(segments))

        return MockDevice(assumed(), graph, answer, "host")
