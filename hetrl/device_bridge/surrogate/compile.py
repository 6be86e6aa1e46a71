"""A plan as a schedule of a cost model, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetrl.compression import NO_COMPRESSION, Compression
from hetrl.device_bridge.spec import Engine, GpuCost
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.device_bridge.surrogate.tables import Option, supports
from hetrl.device_bridge.surrogate.workload import Workload
from hetrl.graph import OperatorGraph
from hetrl.plan import Cap, MadeBy, Memory, Part, Plan, Segment
from hetrl.plan_check import model_ref


@dataclass(frozen=True)
class Fallen:
    """A position that runs on the CPU, since `processor` (its number in the engine) does not take it."""

    position: int
    processor: int


def schedule_of(
    plan: Plan, engine: Engine, options: Sequence[Option], workload: Workload, groups: Sequence[Sequence[int]]
) -> tuple[Schedule, tuple[Fallen, ...]]:
    """The plan's schedule, and what no processor of its placement's takes: it runs on the CPU instead.

    :param groups: fusion groups of each segment, as `check_plan` gives them; `workload` is in that order.
    """
    index = {processor.id: i for i, processor in enumerate(engine.processors)}
    number = {option: i for i, option in enumerate(options)}
    cpu = next(i for i, p in enumerate(engine.processors) if p.unit == "cpu")
    placed: list[Placed] = []
    fallen: list[Fallen] = []
    position = 0
    for members, segment in zip(groups, plan.segments, strict=True):
        option = option_of(segment, index)
        memory = segment.memory or _default_memory(engine)
        start = position
        for place in range(position, position + len(members)):
            refusing = [p for p in option.processors if not supports(engine.processors[p], workload.items[place])]
            if not refusing:
                continue
            fallen.append(Fallen(place, refusing[0]))
            if place > start:
                placed.append(Placed(start, place - 1, number[option], memory))
            placed.append(Placed(place, place, number[Option((cpu,))], memory))
            start = place + 1
        position += len(members)
        if start < position:
            placed.append(Placed(start, position - 1, number[option], memory))
    caps = {cap.processor: cap.duty for cap in plan.caps}
    duty = tuple(caps.get(p.id, 1.0) for p in engine.processors)
    return Schedule(tuple(placed), duty, plan.queue_window, plan.kernel_slice_ms, plan.overlap), tuple(fallen)


def option_of(segment: Segment, index: dict[str, int]) -> Option:
    """The placement of a segment; `index` numbers the engine's processors."""
    return Option(
        tuple(index[p.processor] for p in segment.parts), segment.axis, tuple(p.share_pct for p in segment.parts)
    )


def plan_of(
    schedule: Schedule,
    graph: OperatorGraph,
    options: Sequence[Option],
    engine: Engine,
    *,
    device: str,
    compression: Compression = NO_COMPRESSION,
    made_by: MadeBy | None = None,
) -> Plan:
    """The plan that a schedule over the graph's own order describes; caps of 1 are left out."""
    segments = []
    for placed in _merged(schedule.segments, options):
        option = options[placed.option]
        names = [engine.processors[p].id for p in option.processors]
        has_choice = any(engine.processors[p].memory for p in option.processors)
        segments.append(
            Segment(
                nodes=tuple(n for g in range(placed.start, placed.end + 1) for n in graph.group_node_ids(g)),
                parts=tuple(Part(n, s) for n, s in zip(names, option.shares_pct, strict=True)),
                axis=option.axis,
                memory=placed.memory if has_choice else None,
            )
        )
    used = {name for segment in segments for name in segment.processors}
    caps = tuple(Cap(p.id, d) for p, d in zip(engine.processors, schedule.duty, strict=False) if d < 1 and p.id in used)
    accelerators = {p.id for p in engine.processors if not p.is_cpu}
    accelerated = not used.isdisjoint(accelerators)
    return Plan(
        model=model_ref(graph),
        device=device,
        engines=engine.engines,
        segments=tuple(segments),
        compression=compression,
        caps=caps,
        queue_window=schedule.queue_window if accelerated else None,
        kernel_slice_ms=schedule.slice_ms if accelerated else None,
        overlap=schedule.overlap and len(used) > 1,
        made_by=made_by,
    )


def _merged(segments: Sequence[Placed], options: Sequence[Option]) -> list[Placed]:
    """Neighbours on the same single processor are one segment: where they meet costs nothing."""
    merged: list[Placed] = []
    for placed in segments:
        last = merged[-1] if merged else None
        if last and not options[placed.option].split and (last.option, last.memory) == (placed.option, placed.memory):
            merged[-1] = Placed(last.start, placed.end, last.option, last.memory)
        else:
            merged.append(placed)
    return merged


def _default_memory(engine: Engine) -> Memory:
    return next((p.cost.friendly_memory for p in engine.processors if isinstance(p.cost, GpuCost)), Memory.BUFFER)
