"""What is asked of a device: streams of requests, and what each model costs there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from hetrl.agents.policies.unit_subgraphs import Floats
from hetrl.errors import UsageError

MAX_REQUESTS = 1000  # of one run; where they pile up, looking at all that wait takes its time
MAX_STREAMS = 6


class Stream(msgspec.Struct, frozen=True):
    """One model, asked for again and again.

    :param model: its name, for people.
    :param period_ms: time between two requests.
    :param deadline_ms: how long after it came a request may end.
    :param first_ms: when the first one comes.
    """

    model: str
    period_ms: float
    deadline_ms: float
    first_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("period_ms", "deadline_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 < value <= 1e7):
                raise UsageError(f"{name} {value:g} is not above 0", "try --period 33")

    def arrivals_ms(self, duration_ms: float) -> list[float]:
        """When requests come, before `duration_ms`."""
        count = math.ceil((duration_ms - self.first_ms) / self.period_ms)
        return [self.first_ms + number * self.period_ms for number in range(count)]


def check_streams(streams: Sequence[Stream], duration_ms: float) -> None:
    """Refuse what cannot be simulated.

    :raises UsageError: no stream, too many, no duration, too many requests.
    """
    if not 1 <= len(streams) <= MAX_STREAMS:
        raise UsageError(f"{len(streams)} models at once are out of range", f"give 1 to {MAX_STREAMS}")
    if not (math.isfinite(duration_ms) and 0 < duration_ms <= 1e9):
        raise UsageError(f"a duration of {duration_ms:g} ms is not above 0", "try --duration 2000")
    requests = sum(math.ceil(duration_ms / s.period_ms) for s in streams)
    if requests > MAX_REQUESTS:
        raise UsageError(
            f"{requests} requests are too many",
            f"give a shorter --duration or a longer --period: {MAX_REQUESTS} at most",
        )


@dataclass(frozen=True)
class Task:
    """What one stream's model costs; U units, P processors. A plan is one unit on all its processors.

    :param profiled_ms: (U, U, P) units i to j on processor p by themselves, as a scheduler was told; inf where it does
        not take them.
    :param actual_ms: the same as it is.
    :param home: processors of a scheduler that does not choose: one of a fixed worker, all of a plan.
    """

    profiled_ms: Floats
    actual_ms: Floats
    home: tuple[int, ...]
