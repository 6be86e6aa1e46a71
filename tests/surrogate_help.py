"""Small models and plans that several tests of the cost model use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import msgspec

from hetrl.condition import Condition
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import DeviceSpec, Engine, load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.graph import OperatorGraph
from hetrl.graph.reader import graph_from_model
from hetrl.measurement import Measurement
from hetrl.plan import Memory, Part, Plan, Segment
from hetrl.plan_check import model_ref
from hetrl.testing.devices import whole_model_plans
from hetrl.zoo.builder import Blueprint, Builder

D1 = load_spec("d1")
COLD = Condition()


def graph_of(network: Blueprint) -> OperatorGraph:
    return graph_from_model(network.model, name=network.model.graph.name)


def chain_graph(length: int, *, size: int = 64, channels: int = 8) -> OperatorGraph:
    """3x3 convolutions `l0`, `l1`, ... one after the other."""
    net = Builder(f"chain{length}")
    x = net.input("x", (1, channels, size, size))
    for number in range(length):
        x = net.conv(x, f"l{number}", channels, 3)
    return graph_of(net.finish(x))


def plan_with(device: SurrogateDevice, segments: Sequence[Segment]) -> Plan:
    return Plan(model=model_ref(device.graph), device="d1", engines=(device.engine_name,), segments=tuple(segments))


def on_gpu(device: SurrogateDevice, memory: Memory) -> Plan:
    """The whole model in one segment on the GPU, whether it takes every operator or not."""
    plan = whole_model_plans(device)[1]
    return msgspec.structs.replace(plan, segments=(msgspec.structs.replace(plan.segments[0], memory=memory),))


def segments_by_group(device: SurrogateDevice, processors: Sequence[str], memory: Memory = Memory.IMAGE) -> Plan:
    """Each group on its own processor; neighbours on the same one are a segment."""
    chooses = {p.id for p in device.engine.processors if p.memory}
    segments = []
    for name, run in groupby(range(len(processors)), key=processors.__getitem__):
        nodes = tuple(node for group in run for node in device.graph.group_node_ids(group))
        segments.append(Segment(nodes=nodes, parts=(Part(name),), memory=memory if name in chooses else None))
    return plan_with(device, segments)


def measured(device: SurrogateDevice, plan: Plan, condition: Condition = COLD) -> Measurement:
    """A measurement that must have worked."""
    answer = device.measure(plan, condition)
    assert answer.ok, answer.error
    return answer


def latency_ms(device: SurrogateDevice, plan: Plan) -> float:
    return measured(device, plan).latency_ms or 0.0


def with_cost(processor: int, factors: Mapping[str, float], spec: DeviceSpec = D1) -> DeviceSpec:
    """A device with some cost parameters of one processor multiplied."""
    engine = spec.engine()
    old = engine.processors[processor]
    cost = {name: Quantity(getattr(old.cost, name).value * by, Source.ASSUMED) for name, by in factors.items()}
    processors = list(engine.processors)
    processors[processor] = msgspec.structs.replace(old, cost=msgspec.structs.replace(old.cost, **cost))
    changed: Engine = msgspec.structs.replace(engine, processors=tuple(processors))
    return msgspec.structs.replace(spec, engines={spec.default_engine: changed})
