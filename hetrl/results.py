"""What the public calls return; field names are the keys of `--json`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hetrl.accuracy import MeasuredAccuracy
from hetrl.explanation import Explanation
from hetrl.measurement import Fallback, SegmentTiming
from hetrl.plan import Evidence, Plan

OPTIMAL_WITHIN = 1e-9  # of a proven bound: sums taken in another order


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One plan on one device under one condition: a line of `compare`, the document of `measure`.

    :param policy: hand policy, `exact`, `learned`, or the plan file's name.
    :param fallback_ratio: share (0 to 1) of the operators that did not run where the plan put them.
    :param utilization: processor -> share of the time it was busy.
    :param keeps_budgets: whether accuracy and frame drops are inside the run's budgets.
    :param breaks: which budgets it breaks and by how much, in words.
    :param speedup_over_single: how many times as fast as the fastest hand policy on one processor; `gap_to_exact` is
        (latency - bound) / bound, for plans that keep the budgets. Both are known in comparisons; the gap also of a
        measured exact plan, and of a plan file that still does what it promised.
    :param error: why there are no numbers, None where there are.
    """

    policy: str
    latency_ms: float | None
    latency_interval_ms: tuple[float, float] | None
    accuracy_drop_pct: float
    peak_memory_mb: float | None
    model_size_mb: float
    energy_mj: float | None
    frame_drop_rate: float | None
    fallback_ratio: float
    processors: tuple[str, ...]
    utilization: dict[str, float]
    keeps_budgets: bool
    evidence: Evidence
    accuracy_evidence: Evidence = Evidence.PREDICTED
    segments: tuple[SegmentTiming, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    error: str | None = None
    breaks: str | None = None
    speedup_over_single: float | None = None
    gap_to_exact: float | None = None


class PolicyLatency(msgspec.Struct, frozen=True):
    policy: str
    latency_ms: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All rows for one device, model and condition, fastest first; `winner` is the best that keeps the budgets.

    :param exact_ms: latency of the exact optimum, None where it is not proven or not known.
    :param bound_ms: proven lower bound on any allowed plan's latency.
    :param infeasible: if there is no winner, which budget is the reason and by how much.
    :param explain: why the winner beats another row, if that was asked for.
    """

    device: str
    model: str
    engine: str
    condition: str
    rows: tuple[Row, ...]
    winner: str | None
    exact_ms: float | None = None
    bound_ms: float | None = None
    infeasible: str | None = None
    explain: Explanation | None = None

    @property
    def best(self) -> Row | None:
        """The winner's row."""
        return next((row for row in self.rows if row.policy == self.winner), None)

    def row(self, policy: str) -> Row | None:
        """The row of that name."""
        return next((row for row in self.rows if row.policy == policy), None)


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One device and model of a sweep, as they were named: a comparison (rows without timelines), or why there is none.

    :param inputs: hash of the device file and of the model, so that a sweep that goes on knows what has changed.
    """

    device: str
    model: str
    inputs: str
    wall_s: float
    comparison: Comparison | None = None
    error: str | None = None


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """Comparisons of all pairs, by device and then by model as they were asked for.

    :param engine: the engine set, None for each device's default.
    :param interrupted: stopped early by the user; the pairs are those that were finished.
    """

    engine: str | None
    condition: str
    pairs: tuple[Pair, ...]
    interrupted: bool = False


def best_single(rows: Sequence[Row]) -> Row | None:
    """The fastest hand policy on one processor, of those that keep the budgets."""
    return best_hand([row for row in rows if len(row.processors) == 1])


def best_hand(rows: Sequence[Row]) -> Row | None:
    """The fastest hand policy that keeps the budgets; of equals the one that a runtime's own behaviour is named for."""

    def own(row: Row) -> bool:
        return bool(row.processors) and row.policy.startswith(f"{row.processors[0].split('/')[1]}_")

    return min(fastest_hands(rows), key=lambda row: (not own(row), row.policy), default=None)


def fastest_hands(rows: Sequence[Row]) -> list[Row]:
    """All hand policies that are as fast as the fastest that keeps the budgets."""
    hands = [r for r in rows if r.keeps_budgets and r.latency_ms is not None and r.policy not in ("exact", "learned")]
    best_ms = min((row.latency_ms or 0.0 for row in hands), default=0.0)
    return [row for row in hands if row.latency_ms == best_ms]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What `tune` found.

    :param run: run folder, None where nothing was written.
    :param plan_path: the plan's file in it.
    :param plan: the plan itself.
    :param compressed_model: the smaller model's file that the plan is to run, where accuracy was measured on one.
    :param best_hand: the best hand policy that keeps the budgets.
    :param exact_ms: latency of the exact optimum, None where it is not proven or not known.
    :param bound_ms: proven lower bound on any allowed plan's latency.
    :param gap_to_exact: (latency - bound) / bound.
    :param accuracy: with evaluation data; `accuracy_drop_pct` is then its drop, else predicted.
    :param evaluations: distinct plans measured; `env_steps` are decisions taken while learning.
    :param interrupted: stopped early by the user; the plan is the best so far.
    :param notes: what to know of how measuring went, such as a device that became slower; a sentence each.
    """

    run: str | None
    plan_path: str | None
    plan: Plan
    compressed_model: str | None = None
    device: str
    model: str
    engine: str
    condition: str
    agent: str
    seed: int
    latency_ms: float
    best_hand: PolicyLatency | None
    exact_ms: float | None
    bound_ms: float | None
    gap_to_exact: float | None
    accuracy_drop_pct: float
    frame_drop_rate: float | None
    peak_memory_mb: float | None
    energy_mj: float | None
    evaluations: int
    env_steps: int
    wall_s: float
    evidence: Evidence
    accuracy: MeasuredAccuracy | None = None
    rows: tuple[Row, ...]
    interrupted: bool = False
    notes: tuple[str, ...] = ()
