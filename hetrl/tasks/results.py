"""What runs of several models come to; field names are the keys of `--json`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from hetrl.plan import Evidence
from hetrl.tasks.simulation import Request, Run
from hetrl.tasks.streams import Stream


class Latencies(msgspec.Struct, frozen=True):
    """Of requests that ended, from when they came until they ended."""

    mean_ms: float
    median_ms: float
    p90_ms: float
    max_ms: float


class StreamResult(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of a run.

    :param runs: the plan that its requests ran, or the scheduler that placed them.
    :param finished: requests that ended, late ones too; the others were dropped.
    :param misses: requests that were dropped or ended after their deadline.
    :param latency_ms: None if none ended.
    """

    model: str
    period_ms: float
    deadline_ms: float
    runs: str
    requests: int
    finished: int
    dropped: int
    misses: int
    throughput_per_s: float
    latency_ms: Latencies | None


class TaskRow(msgspec.Struct, frozen=True, kw_only=True):
    """All streams under one scheduler.

    :param throughput_per_s: requests that ended per second, until the last one did.
    :param latency_ms: over all streams.
    :param utilization: processor -> share (0 to 1) of the time that a request held it.
    :param accuracy_drop_pct: the most that any stream's model loses, predicted.
    :param keeps_budgets: whether that is within the accuracy budget.
    """

    scheduler: str
    throughput_per_s: float
    misses: int
    dropped: int
    latency_ms: Latencies | None
    utilization: dict[str, float]
    accuracy_drop_pct: float
    keeps_budgets: bool
    streams: tuple[StreamResult, ...]


class TaskComparison(msgspec.Struct, frozen=True, kw_only=True):
    """All rows for one device and condition, best first as `score` says; `winner` is the best that keeps the budgets.

    :param profiled: the condition in which Band's schedulers were told what subgraphs take.
    """

    device: str
    engine: str
    condition: str
    profiled: str
    duration_ms: float
    rows: tuple[TaskRow, ...]
    winner: str | None
    evidence: Evidence = Evidence.PREDICTED


def latencies(requests: Sequence[Request]) -> Latencies | None:
    """Of those that ended; percentiles by nearest rank, so that each is some request's own."""
    spent = sorted(r.end_ms - r.arrival_ms for r in requests if r.end_ms is not None)
    if not spent:
        return None

    def percentile(share: float) -> float:
        return spent[max(0, math.ceil(share * len(spent)) - 1)]

    return Latencies(math.fsum(spent) / len(spent), percentile(0.5), percentile(0.9), spent[-1])


def missed(request: Request) -> bool:
    """Whether it was dropped, or ended after its deadline (rounding aside)."""
    return request.end_ms is None or request.end_ms > request.deadline_ms + 1e-6


def score(run: Run) -> tuple[int, int, float]:
    """What the planner minimises: deadline misses, then dropped requests, then mean latency (ms) of the others."""
    told = latencies(run.requests)
    dropped = sum(r.dropped for r in run.requests)
    return sum(map(missed, run.requests)), dropped, math.inf if told is None else told.mean_ms


def utilization(run: Run, processors: Sequence[str]) -> dict[str, float]:
    """Share of the time that each processor was held."""
    held = dict.fromkeys(processors, 0.0)
    for execution in run.executions:
        for p in execution.piece.processors:
            held[processors[p]] += execution.end_ms - execution.start_ms
    return {name: busy / run.horizon_ms for name, busy in held.items()}


def stream_result(run: Run, number: int, stream: Stream, runs: str) -> StreamResult:
    """One stream's part of a run."""
    own = [r for r in run.requests if r.stream == number]
    finished = sum(r.end_ms is not None for r in own)
    return StreamResult(
        model=stream.model,
        period_ms=stream.period_ms,
        deadline_ms=stream.deadline_ms,
        runs=runs,
        requests=len(own),
        finished=finished,
        dropped=sum(r.dropped for r in own),
        misses=sum(map(missed, own)),
        throughput_per_s=1e3 * finished / run.horizon_ms,
        latency_ms=latencies(own),
    )
