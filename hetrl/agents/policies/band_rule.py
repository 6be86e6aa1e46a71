"""Band's way to the shortest expected latency (Jeong et al., MobiSys'22; mrsnu/band, band/engine.cc).

A dynamic program over runs of unit subgraphs: `memo[j]` is the least over i <= j and workers w that take units i to j
of `max(waiting[w], memo[i - 1]) + expected(i..j, w)`. Moving data has no cost of its own: it is in the profiled
latency of each subgraph. Ignores that two processors that work at once slow each other down, energy, the screen, and
that an int8 processor costs accuracy. Of equals the longest last run is taken, then the first worker (Band: whichever
comes last).

Units follow each other in Band's order; hetrl runs hand plans in the graph's. Where the two differ, a subgraph with a
gap in the graph's order becomes several segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hetrl.agents.policies.placing import placed_on
from hetrl.agents.policies.unit_subgraphs import Floats, Profile, profile
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.schedule import Schedule


@dataclass(frozen=True)
class Subgraph:
    """Units `first` to `last` (both in it) on one worker."""

    first: int
    last: int
    worker: int


def shortest(
    expected_ms: Floats, start: int = 0, waiting_ms: Sequence[float] | None = None
) -> tuple[tuple[Subgraph, ...], float]:
    """The subgraphs from unit `start` on that end soonest, and when (ms from now).

    :param expected_ms: (U, U, P) as in `Profile`.
    :param waiting_ms: how long each worker is busy still; by default all are idle.
    """
    count, _, workers = expected_ms.shape
    waiting = np.zeros(workers) if waiting_ms is None else np.asarray(waiting_ms, dtype=np.float64)
    ends = np.zeros(count - start + 1)  # ends[d]: when unit start + d - 1 is done
    chosen = []
    for last in range(start, count):
        done = np.maximum(ends[: last - start + 1, None], waiting)
        done += expected_ms[start : last + 1, last]
        best = int(done.argmin())
        ends[last - start + 1] = done.flat[best]
        chosen.append(best)
    path: list[Subgraph] = []
    unit = count - 1
    while unit >= start:
        first, worker = divmod(chosen[unit - start], workers)
        path.append(Subgraph(start + first, unit, worker))
        unit = start + first - 1
    return tuple(reversed(path)), float(ends[-1])


def largest(expected_ms: Floats, start: int, worker: int) -> Subgraph | None:
    """The longest run from unit `start` on that a worker takes, None if it does not take that unit."""
    taken = np.flatnonzero(np.isfinite(expected_ms[start, :, worker]))
    return Subgraph(start, int(taken[-1]), worker) if len(taken) else None


def on_fixed(expected_ms: Floats, start: int, worker: int, cpu: int) -> Subgraph:
    """The next subgraph of a model that is bound to a worker; what that does not take goes to the CPU."""
    own = largest(expected_ms, start, worker)
    if own is not None:
        return own
    count = len(expected_ms)
    back = next((u for u in range(start, count) if np.isfinite(expected_ms[u, u, worker])), count)
    return Subgraph(start, back - 1, cpu)


def walk(count: int, following: Callable[[int], Subgraph]) -> Iterator[Subgraph]:
    """All subgraphs of a model with `count` units, where `following` gives the one that starts at a unit."""
    unit = 0
    while unit < count:
        subgraph = following(unit)
        yield subgraph
        unit = subgraph.last + 1


def fixed_path(known: Profile, worker: int) -> tuple[Subgraph, ...]:
    """The whole model bound to one worker."""
    table = known.expected_ms
    return tuple(walk(len(table), lambda unit: on_fixed(table, unit, worker, known.cpu)))


def fastest_worker(known: Profile) -> int:
    """The worker that a model bound to it ends soonest on; the first of equals. Band leaves it to its configuration."""

    def total_ms(worker: int) -> float:
        return sum(float(known.expected_ms[s.first, s.last, s.worker]) for s in fixed_path(known, worker))

    return min(range(known.expected_ms.shape[2]), key=total_ms)


def fixed_schedule(device: SurrogateDevice) -> Schedule:
    """Everything on the fastest worker."""
    known = profile(device)
    return _schedule(device, known, fixed_path(known, fastest_worker(known)))


def round_robin_schedule(device: SurrogateDevice) -> Schedule:
    """All workers are idle, so the first one with a subgraph takes the largest, again and again."""
    known = profile(device)
    workers = range(known.expected_ms.shape[2])

    def following(unit: int) -> Subgraph:
        found = (largest(known.expected_ms, unit, worker) for worker in workers)
        return next(subgraph for subgraph in found if subgraph is not None)

    return _schedule(device, known, tuple(walk(len(known.expected_ms), following)))


def shortest_schedule(device: SurrogateDevice) -> Schedule:
    """The dynamic program's plan on an idle phone."""
    known = profile(device)
    return _schedule(device, known, shortest(known.expected_ms)[0])


def _schedule(device: SurrogateDevice, known: Profile, path: Sequence[Subgraph]) -> Schedule:
    worker_of = [known.cpu] * len(device.graph.groups)
    for subgraph in path:
        for unit in range(subgraph.first, subgraph.last + 1):
            for group in known.units.members[unit]:
                worker_of[group] = subgraph.worker
    return placed_on(worker_of, device.engine)
