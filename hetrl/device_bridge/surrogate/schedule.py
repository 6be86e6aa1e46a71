"""A schedule: what a plan says, as positions and option numbers of one set of tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hetrl.device_bridge.surrogate.cost_model import Schedules
from hetrl.device_bridge.surrogate.tables import MEMORIES
from hetrl.plan import DEFAULT_QUEUE_WINDOW, Memory


@dataclass(frozen=True)
class Placed:
    """Positions `start` to `end` (both in it) under one option."""

    start: int
    end: int
    option: int
    memory: Memory


@dataclass(frozen=True)
class Schedule:
    """Placed segments that cover all positions in order, and what holds for the whole run.

    :param duty: cap of each processor of the engine, in order; empty for none.
    :param overlap: whether independent segments run side by side.
    """

    segments: tuple[Placed, ...]
    duty: tuple[float, ...] = ()
    queue_window: int | None = None
    slice_ms: float | None = None
    overlap: bool = False


def batch_of(schedules: Sequence[Schedule], positions: int, processors: int) -> Schedules:
    """Schedules as the arrays that `CostModel.evaluate` takes."""
    size = len(schedules)
    option, start, end, memory = (np.zeros((positions, size), dtype=np.int64) for _ in range(4))
    for b, schedule in enumerate(schedules):
        for placed in schedule.segments:
            span = slice(placed.start, placed.end + 1)
            option[span, b] = placed.option
            start[span, b] = placed.start
            end[span, b] = placed.end
            memory[span, b] = MEMORIES.index(placed.memory)
    return Schedules(
        option=option,
        start=start,
        end=end,
        memory=memory,
        duty=np.array([s.duty or (1.0,) * processors for s in schedules]).T.reshape(processors, size),
        queue_window=np.array([s.queue_window or DEFAULT_QUEUE_WINDOW for s in schedules], dtype=np.int64),
        slice_ms=np.array([s.slice_ms or np.inf for s in schedules]),
        overlap=np.array([s.overlap for s in schedules], dtype=np.bool_),
    )
