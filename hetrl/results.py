"""What the public calls return; field names are the keys of `--json`."""

from __future__ import annotations

import msgspec

from hetrl.measurement import Fallback, SegmentTiming
from hetrl.plan import Evidence, Plan


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One plan on one device under one condition: a line of `compare`, the document of `measure`.

    :param policy: hand policy, `exact`, `learned`, or the plan file's name.
    :param fallback_ratio: share (0 to 1) of the operators that did not run where the plan put them.
    :param utilization: processor -> share of the time it was busy.
    :param keeps_budgets: whether accuracy and frame drops are inside the run's budgets.
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
    segments: tuple[SegmentTiming, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    error: str | None = None


class PolicyLatency(msgspec.Struct, frozen=True):
    policy: str
    latency_ms: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All rows for one device, model and condition, fastest first; `winner` is the best that keeps the budgets."""

    device: str
    model: str
    engine: str
    condition: str
    rows: tuple[Row, ...]
    winner: str | None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What `tune` found.

    :param run: run folder, None where nothing was written.
    :param plan_path: the plan's file in it.
    :param plan: the plan itself.
    :param best_hand: the best hand policy that keeps the budgets.
    :param exact_ms: latency of the exact optimum, None where it is not proven or not known.
    :param bound_ms: proven lower bound on any allowed plan's latency.
    :param gap_to_exact: (latency - bound) / bound.
    :param evaluations: distinct plans measured; `env_steps` are decisions taken while learning.
    :param interrupted: stopped early by the user; the plan is the best so far.
    """

    run: str | None
    plan_path: str | None
    plan: Plan
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
    rows: tuple[Row, ...]
    interrupted: bool = False
