"""A processor for every fusion group: what strategies come to that split nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from hetrl.device_bridge.spec import Engine, GpuCost
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.plan import Memory


def usual_memory(engine: Engine) -> Memory:
    """The memory type that the engine's first GPU likes; buffers where there is no choice."""
    return next((p.cost.friendly_memory for p in engine.processors if isinstance(p.cost, GpuCost)), Memory.BUFFER)


def placed_on(processors: Sequence[int], engine: Engine) -> Schedule:
    """The schedule in which each position runs on its processor (its number is its option's too)."""
    memory = usual_memory(engine)
    segments, start = [], 0
    for processor, run in groupby(processors):
        end = start + len(list(run))
        segments.append(Placed(start, end - 1, processor, memory))
        start = end
    return Schedule(tuple(segments))
