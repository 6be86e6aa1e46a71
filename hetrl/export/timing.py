"""How long an inference takes, in a bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from hetrl.device_bridge.runner.significance import median_interval

REPEATS = 15  # inferences that a latency is the median of
CONFIDENCE = 0.9
WARMUP_S = 0.1  # what an app sees that runs again and again, not of its first milliseconds
MAX_S = 10.0  # a device that is played by software may take seconds for one


def timed_ms(run: Callable[[], object], repeats: int) -> tuple[float, ...]:
    """Samples: `repeats` of them, or fewer when time is up, but one; before several, the caches are warmed."""
    samples: list[float] = []
    began = time.perf_counter()
    while repeats > 1 and time.perf_counter() - began < WARMUP_S:
        run()
    while len(samples) < repeats and (not samples or time.perf_counter() - began < MAX_S):
        start = time.perf_counter()
        run()
        samples.append((time.perf_counter() - start) * 1e3)
    return tuple(samples)


def interval_ms(samples: Sequence[float]) -> tuple[float, float] | None:
    """90 % interval of their median; None for too few."""
    return median_interval(samples, CONFIDENCE)
