"""A discrete-event run of requests on the processors of one engine set.

Pieces (runs of units of one request) hold their processors until they are done. Each processor works off what waits in
its line in order; a piece of several processors starts when it is first in all their lines. While pieces of different
requests are at work, each runs at 1 / (1 + contention) of its speed; the rates change only at events. That is the
engine's sharing overhead of two processors, taken for any number of them (nobody measured three).

Left out: the host's part in moving data and in driving accelerators, memory, heat that builds up, the screen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hetrl.agents.policies.unit_subgraphs import Floats
from hetrl.tasks.streams import Stream, Task

SMOOTHING = 0.1  # weight of a new latency in the moving average; Band's profile_smoothing_factor
DONE_MS = 1e-9  # what is left of a piece when it is done, for sums of rounded times


@dataclass(eq=False)
class Request:
    """One request under way. `unit` is the next one to run."""

    stream: int
    arrival_ms: float
    deadline_ms: float
    unit: int = 0
    end_ms: float | None = None
    dropped: bool = False


@dataclass(frozen=True)
class Piece:
    """Units `first` to `last` of a request on processors that it holds together."""

    request: Request
    first: int
    last: int
    processors: tuple[int, ...]


@dataclass(frozen=True)
class Execution:
    """A piece that ran."""

    piece: Piece
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Run:
    """What happened. `horizon_ms` is when the last piece of work ended, or the duration if that is later."""

    requests: tuple[Request, ...]
    executions: tuple[Execution, ...]
    horizon_ms: float


class Scheduler(Protocol):
    """Decides at each event; it takes what it decides on out of `state.queue`."""

    def __call__(self, state: State) -> None: ...


@dataclass
class _Active:
    piece: Piece
    start_ms: float
    expected_ms: float
    left_ms: float


@dataclass
class State:
    """What a scheduler sees.

    :param queue: requests whose next unit nobody has been given, in order.
    :param expected_ms: by stream, (U, U, P): moving averages of what pieces took.
    """

    tasks: Sequence[Task]
    expected_ms: list[Floats]
    now_ms: float = 0.0
    queue: list[Request] = field(default_factory=list)
    _lines: list[list[Piece]] = field(default_factory=list)
    _active: list[_Active] = field(default_factory=list)

    def expected(self, piece: Piece) -> float:
        """What a piece is expected to take (ms), by itself."""
        return float(self.expected_ms[piece.request.stream][piece.first, piece.last, piece.processors[0]])

    @property
    def idle(self) -> set[int]:
        """Processors with nothing to do and nothing in line."""
        held = {p for active in self._active for p in active.piece.processors}
        return {p for p, line in enumerate(self._lines) if not line and p not in held}

    @property
    def waiting_ms(self) -> list[float]:
        """How long each processor is expected to be busy with what it has."""
        waiting = [sum(self.expected(piece) for piece in line) for line in self._lines]
        for active in self._active:
            left = max(0.0, active.start_ms + active.expected_ms - self.now_ms)
            for p in active.piece.processors:
                waiting[p] += left
        return waiting

    def dispatch(self, piece: Piece) -> None:
        """Put a piece in its processors' lines."""
        self.queue.remove(piece.request)
        for p in piece.processors:
            self._lines[p].append(piece)

    def drop(self, request: Request) -> None:
        """Give a request up."""
        self.queue.remove(request)
        request.dropped = True


def simulate(
    streams: Sequence[Stream], tasks: Sequence[Task], scheduler: Scheduler, contention: float, duration_ms: float
) -> Run:
    """Let requests come for `duration_ms`, and run until all have ended or were dropped.

    Deterministic: pieces that end come before requests that arrive, requests in the order of the streams.
    """
    coming = sorted(
        (arrival, number) for number, stream in enumerate(streams) for arrival in stream.arrivals_ms(duration_ms)
    )
    requests = [Request(number, arrival, arrival + streams[number].deadline_ms) for arrival, number in coming]
    state = State(tasks, [task.profiled_ms.copy() for task in tasks])
    state._lines = [[] for _ in range(tasks[0].actual_ms.shape[2])]
    executions: list[Execution] = []
    arrived = 0
    while arrived < len(requests) or state.queue or state._active:
        slow = 1.0 + contention if len(state._active) > 1 else 1.0
        until = min((slow * active.left_ms for active in state._active), default=np.inf)
        if arrived < len(requests):
            until = min(until, requests[arrived].arrival_ms - state.now_ms)
        assert np.isfinite(until), "the scheduler leaves requests waiting for nothing"
        state.now_ms += until
        for active in state._active:
            active.left_ms -= until / slow
        executions += _ended(state)
        while arrived < len(requests) and requests[arrived].arrival_ms <= state.now_ms + DONE_MS:
            state.queue.append(requests[arrived])
            arrived += 1
        scheduler(state)
        _start(state)
    ends = (execution.end_ms for execution in executions)  # those of requests that were dropped later among them
    return Run(tuple(requests), tuple(executions), max([duration_ms, *ends]))


def _ended(state: State) -> Iterable[Execution]:
    """Take away the pieces that are done; what follows them goes to the front of the queue, as in Band."""
    done = [active for active in state._active if active.left_ms <= DONE_MS]
    state._active = [active for active in state._active if active.left_ms > DONE_MS]
    for active in done:
        piece, request = active.piece, active.piece.request
        took, table = state.now_ms - active.start_ms, state.expected_ms[request.stream]
        for p in piece.processors:
            table[piece.first, piece.last, p] += SMOOTHING * (took - table[piece.first, piece.last, p])
        request.unit = piece.last + 1
        if request.unit == len(table):
            request.end_ms = state.now_ms
        else:
            state.queue.insert(0, request)
        yield Execution(piece, active.start_ms, state.now_ms)


def _start(state: State) -> None:
    """Start every piece that is first in all its lines, on processors that are free."""
    held = {p for active in state._active for p in active.piece.processors}
    for p, line in enumerate(state._lines):
        if not line or p in held:
            continue
        piece = line[0]
        if any(q in held or state._lines[q][0] is not piece for q in piece.processors):
            continue
        for q in piece.processors:
            state._lines[q].pop(0)
        held.update(piece.processors)
        actual = state.tasks[piece.request.stream].actual_ms[piece.first, piece.last, piece.processors[0]]
        state._active.append(_Active(piece, state.now_ms, state.expected(piece), float(actual)))
