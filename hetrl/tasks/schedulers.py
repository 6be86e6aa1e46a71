"""Who runs next: Band's six schedulers (mrsnu/band, band/scheduler), and requests of fixed plans in order.

    fixed           every request to its model's own worker, whose line it waits in; what that does not take, to the CPU
    round robin     each idle worker, in the device's order, takes the first request that it has a subgraph for, and of
                    that the largest
    SEL             of all requests the one whose best latency is the largest, to the line of its best worker; repeat
    HEFT            the same, but only to an idle worker: a request that had better wait for a busy one does, and what
                    it will take there is charged to that worker for the others
    HEFT reserved   also charges the next subgraph of each request that has begun
    LST             least slack first (deadline - now - best latency), to idle workers; drops what cannot be in time

Best latency and worker come from the dynamic program of `band_rule`, with what each worker has to do already. Band
looks at all waiting requests (its `schedule_window_size` is unlimited by default), so do these. With the first two,
Band keeps models whole and leaves fallback to TFLite; here the CPU's part waits in the CPU's line like any other
subgraph, so that nothing runs on a processor that is taken. In Band the planner drops late requests under every
scheduler; here only LST does, whose rule it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hetrl.agents.policies.band_rule import Subgraph, largest, on_fixed, shortest
from hetrl.tasks.simulation import Piece, Request, Scheduler, State


def _piece(request: Request, subgraph: Subgraph) -> Piece:
    return Piece(request, subgraph.first, subgraph.last, (subgraph.worker,))


def whole(state: State) -> None:
    """Every request as one piece on its home, in the order of arrival: plans."""
    for request in list(state.queue):
        task = state.tasks[request.stream]
        state.dispatch(Piece(request, 0, len(task.profiled_ms) - 1, task.home))


@dataclass(frozen=True)
class Fixed:
    cpu: int

    def __call__(self, state: State) -> None:
        for request in list(state.queue):
            task = state.tasks[request.stream]
            state.dispatch(_piece(request, on_fixed(task.profiled_ms, request.unit, task.home[0], self.cpu)))


def round_robin(state: State) -> None:
    for worker in sorted(state.idle):
        for request in state.queue:
            subgraph = largest(state.tasks[request.stream].profiled_ms, request.unit, worker)
            if subgraph is not None:
                state.dispatch(_piece(request, subgraph))
                break


@dataclass(frozen=True)
class Best:
    """A request with the subgraphs of its best plan, and how long that takes from now."""

    request: Request
    path: tuple[Subgraph, ...]
    latency_ms: float


def _best(state: State, request: Request, waiting_ms: list[float]) -> Best:
    return Best(request, *shortest(state.expected_ms[request.stream], request.unit, waiting_ms))


class _Alike:
    """Waiting requests, those of one model at one unit in one line: only the first of a line is ever looked at."""

    def __init__(self, queue: list[Request]) -> None:
        self._lines: dict[tuple[int, int], deque[tuple[int, Request]]] = {}
        for place, request in enumerate(queue):
            self._lines.setdefault((request.stream, request.unit), deque()).append((place, request))
        self._known: dict[Request, Best] = {}

    def most_urgent(self, state: State, waiting_ms: Callable[[Request], list[float]]) -> Best | None:
        """Takes out the request whose best latency is the largest, the earliest of equals; None if none is left.

        The worker that it wants first must have more to do when this is called again, and no other.
        """
        firsts = [request for _, request in sorted(line[0] for line in self._lines.values() if line)]
        for request in firsts:
            if request not in self._known:
                self._known[request] = _best(state, request, waiting_ms(request))
        if not firsts:
            return None
        urgent = max((self._known[request] for request in firsts), key=lambda best: best.latency_ms)
        self._lines[urgent.request.stream, urgent.request.unit].popleft()
        # Who does not use that worker has the same best plan when it is busier still.
        busier = urgent.path[0].worker
        self._known = {r: best for r, best in self._known.items() if all(s.worker != busier for s in best.path)}
        return urgent


def shortest_expected_latency(state: State) -> None:
    alike = _Alike(state.queue)
    while (best := alike.most_urgent(state, lambda _: state.waiting_ms)) is not None:
        state.dispatch(_piece(best.request, best.path[0]))


@dataclass
class Heft:
    """:param reserved: the next subgraph of each request that has begun; None without reservation."""

    reserved: dict[Request, Subgraph] | None = None

    def __call__(self, state: State) -> None:
        while (best := self._next(state)) is not None:
            state.dispatch(_piece(best.request, best.path[0]))
            if self.reserved is not None:
                self.reserved.pop(best.request, None)
                if len(best.path) > 1:
                    self.reserved[best.request] = best.path[1]

    def _next(self, state: State) -> Best | None:
        """The most urgent request that need not wait for a busy worker; None if all had better wait."""
        idle, waiting = state.idle, state.waiting_ms
        alike = _Alike(state.queue if idle else [])
        while (best := alike.most_urgent(state, lambda request: self._charged(state, request, waiting))) is not None:
            subgraph = best.path[0]
            if subgraph.worker in idle:
                return best
            waiting[subgraph.worker] += state.expected(_piece(best.request, subgraph))
        return None

    def _charged(self, state: State, request: Request, waiting_ms: list[float]) -> list[float]:
        charged = list(waiting_ms)
        for other, subgraph in (self.reserved or {}).items():
            if other is not request:
                charged[subgraph.worker] += state.expected(_piece(other, subgraph))
        return charged


def least_slack(state: State) -> None:
    idle, waiting = state.idle, state.waiting_ms
    known: dict[tuple[int, int], Best] = {}  # with what is waiting now

    def best_of(request: Request) -> Best:
        key = (request.stream, request.unit)
        if key not in known:
            known[key] = _best(state, request, waiting)
        return known[key]

    def slack_ms(request: Request) -> float:
        return request.deadline_ms - state.now_ms - best_of(request).latency_ms

    for request in sorted(state.queue, key=slack_ms) if idle else ():
        best = best_of(request)
        worker = best.path[0].worker
        if state.now_ms + best.latency_ms > request.deadline_ms:
            state.drop(request)
        elif worker in idle:
            piece = _piece(request, best.path[0])
            waiting[worker] += state.expected(piece)
            known.clear()
            idle.discard(worker)
            state.dispatch(piece)


BAND_SCHEDULERS = ("band_fixed", "band_rr", "band_sel", "band_heft", "band_heft_reserved", "band_lst")


def band_scheduler(name: str, cpu: int) -> Scheduler:
    """A new scheduler of that name; one serves one run."""
    schedulers: dict[str, Scheduler] = {
        "band_fixed": Fixed(cpu),
        "band_rr": round_robin,
        "band_sel": shortest_expected_latency,
        "band_heft": Heft(),
        "band_heft_reserved": Heft({}),
        "band_lst": least_slack,
    }
    return schedulers[name]
