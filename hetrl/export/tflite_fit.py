"""The parts of a model that a delegate of TensorFlow Lite may get, and the best plan that they allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from hetrl.device_bridge.surrogate.compile import plan_of
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.envs.space import PlanSpace
from hetrl.export.base import Exporter, Wish, unit_of
from hetrl.export.expected import engine_set
from hetrl.export.lowering import nothing
from hetrl.graph import OperatorGraph
from hetrl.objective import Objective
from hetrl.plan import MadeBy, Memory, Plan
from hetrl.support.lowering import RuntimeOp, lower
from hetrl.support.partition import partitions
from hetrl.support.rules import rule_set

_RULES = {"gpu": "tflite_gpu", "dsp": "tflite_hexagon"}  # an NPU's driver says itself what it takes


def ranked_partitions(ops: Sequence[RuntimeOp], unit: str) -> tuple[tuple[int, ...], ...]:
    """The parts that a unit's delegate could have, largest first; of equally large ones the earlier first."""
    rules = rule_set(_RULES[unit]) if unit in _RULES else None
    taken = [rules is None or rules.refusal(op.name) is None for op in ops]
    return tuple(sorted(partitions(ops, taken), key=len, reverse=True))


def best_for_tflite(exporter: Exporter, wish: Wish) -> Plan:
    """The fastest plan that some limit on partitions gives, or the CPU alone.

    :raises Infeasible: there is none.
    """
    plan, graph = wish.plan, wish.graph
    device = SurrogateDevice(wish.spec, graph, engine_set(plan, wish.spec))
    best: tuple[float, Plan] | None = None
    for found in _candidates(device, _usable(device, plan)):
        if exporter.claims(found, graph).refused:
            continue
        measured = device.measure(found, wish.condition)
        latency_ms = measured.latency_ms
        if latency_ms is not None and wish.keeps(measured) and (best is None or latency_ms < best[0]):
            best = latency_ms, found
    if best is None:
        raise nothing(f"TensorFlow Lite carries no plan of this model for {plan.device}", wish.objective)
    return replace(best[1], model=plan.model, compression=plan.compression)


def _usable(device: SurrogateDevice, plan: Plan) -> set[int]:
    """Processors that cost no accuracy, or are the plan's own."""
    space = PlanSpace(device, Objective())
    lossless = space.possible_at(space.compressions[0])
    return {n for n, p in enumerate(device.engine.processors) if lossless[:, n].any() or p.id in plan.processors}


def _candidates(device: SurrogateDevice, usable: set[int]) -> Iterator[Plan]:
    """The CPU alone, and each accelerator with its one, two, ... largest parts."""
    graph, units = device.graph, [unit_of(processor.id) for processor in device.engine.processors]
    ops = lower(graph)
    cpu = units.index("cpu")
    yield _plan(device, [cpu] * len(graph.groups))
    for processor in sorted(usable - {cpu}):
        delegated: set[str] = set()
        for part in ranked_partitions(ops, units[processor]):
            delegated |= {ops[n].node for n in part}
            yield _plan(device, _placement(graph, ops, delegated, processor, cpu))


def _placement(
    graph: OperatorGraph, ops: Sequence[RuntimeOp], delegated: set[str], processor: int, cpu: int
) -> list[int]:
    """A processor for each fusion group; those without work stay where the one before them is."""
    working = {op.node for op in ops}
    chosen: list[int] = []
    for group in graph.groups:
        nodes = working.intersection(graph.group_node_ids(group.index))
        there = bool(nodes & delegated) if nodes else bool(chosen) and chosen[-1] == processor
        chosen.append(processor if there else cpu)
    return chosen


def _plan(device: SurrogateDevice, chosen: Sequence[int]) -> Plan:
    schedule = Schedule(tuple(Placed(n, n, processor, Memory.BUFFER) for n, processor in enumerate(chosen)))
    made = plan_of(
        schedule,
        device.graph,
        device.options,
        device.engine,
        device=device.spec.id,
        made_by=MadeBy(method="lowered"),
    )
    return replace(made, segments=tuple(replace(segment, memory=None) for segment in made.segments))
