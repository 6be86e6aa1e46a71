"""Settings that hold a plan's processors back: what exact methods try to keep a frame limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.envs.space import QUEUE_WINDOWS, PlanSpace


@dataclass(frozen=True)
class Pace:
    """What holds for a whole plan besides its memory type; every field slows it down, the more the smaller it is."""

    window: int
    slice_ms: float | None
    duty: tuple[float, ...]

    def no_faster_than(self, other: Pace) -> bool:
        """Whether no schedule runs faster at this pace than at the other."""
        mine, its = self.slice_ms or np.inf, other.slice_ms or np.inf
        return (
            self.window <= other.window
            and mine <= its
            and all(a <= b for a, b in zip(self.duty, other.duty, strict=True))
        )

    def schedule(self, segments: tuple[Placed, ...]) -> Schedule:
        window = None if self.window == QUEUE_WINDOWS[0] else self.window
        return Schedule(segments, self.duty, window, self.slice_ms)


def paces(space: PlanSpace, *, limited: bool) -> list[Pace]:
    """Those worth solving, those that may make others hopeless first.

    Without a frame limit, caps and small windows only cost time. With one, caps are tried on one processor at a time.
    """
    processors = len(space.engine.processors)
    full = (1.0,) * processors
    if not limited:
        return [Pace(QUEUE_WINDOWS[0], None, full)]
    capped = [
        tuple(duty if q == p else 1.0 for q in range(processors))
        for p in range(processors)
        for duty in space.duties[1:]
    ]
    return [Pace(w, s, duty) for duty in (full, *capped) for s in space.slices_ms for w in space.windows]
