"""Measured plans as the rows that users see."""

from __future__ import annotations

import math

import msgspec
from msgspec import UNSET

from hetrl.accuracy import PREDICTED_DROPS
from hetrl.agents.infeasible import broken_words
from hetrl.compress.planned import compressed_graph
from hetrl.condition import Condition
from hetrl.envs.setting import Setting
from hetrl.measurement import Measurement
from hetrl.objective import Objective
from hetrl.plan import Evidence, Expected, Plan
from hetrl.results import OPTIMAL_WITHIN, Row

DIGITS = 1e-5  # of a number: more than six digits leave out


def row_of(name: str, plan: Plan, measured: Measurement, setting: Setting) -> Row:
    """One plan's row."""
    graph, objective = setting.graph, setting.objective
    drop_pct, accuracy_evidence = _accuracy(plan, setting)
    keeps = measured.ok and not plan.stretched and objective.keeps(drop_pct, measured.frame_drop_rate)
    fallen = {graph.group_of_node[graph.node_index[f.node]] for f in measured.fallbacks}
    moved = sum(len(graph.groups[g].nodes) for g in fallen)
    return Row(
        policy=name,
        latency_ms=measured.latency_ms,
        latency_interval_ms=measured.latency_interval_ms,
        accuracy_drop_pct=drop_pct,
        accuracy_evidence=accuracy_evidence,
        peak_memory_mb=measured.peak_memory_mb,
        model_size_mb=compressed_graph(graph, plan.compression).weight_bytes / 1e6,
        energy_mj=measured.energy_mj,
        frame_drop_rate=measured.frame_drop_rate,
        fallback_ratio=moved / len(graph.nodes),
        processors=plan.processors,
        utilization={u.processor: u.busy for u in measured.utilization},
        keeps_budgets=keeps,
        breaks=_broken(plan, drop_pct, measured, objective),
        evidence=measured.evidence,
        segments=measured.segments,
        fallbacks=measured.fallbacks,
        error=f"{measured.error.kind.value}: {measured.error.message}" if measured.error else None,
    )


def _accuracy(plan: Plan, setting: Setting) -> tuple[float, Evidence]:
    """What a plan costs: of one with a compressed model that was measured when it was made, what it says itself."""
    artefact = plan.compression.artefact_sha256 is not UNSET
    if artefact and plan.expected is not None and setting.drops is PREDICTED_DROPS:
        return plan.expected.accuracy_drop_pct, Evidence.MEASURED
    return setting.drops.of_plan(plan), setting.drops.evidence_of_plan(plan)


def _broken(plan: Plan, drop_pct: float, measured: Measurement, objective: Objective) -> str | None:
    if not measured.ok:
        return None
    if plan.stretched:
        return "changes the network, which would have to be trained anew"
    return broken_words(objective, drop_pct, measured.frame_drop_rate)


def measured_row(name: str, plan: Plan, setting: Setting) -> Row:
    """Measure a plan, and make its row."""
    return row_of(name, plan, setting.device.measure(plan, setting.condition), setting)


def bounded(row: Row, bound_ms: float | None) -> Row:
    """The row with its gap to a proven bound, if it keeps the budgets: the bound is on such plans."""
    if row.latency_ms is None or not row.keeps_budgets or not bound_ms or not math.isfinite(bound_ms):
        return row
    return msgspec.structs.replace(row, gap_to_exact=(row.latency_ms - bound_ms) / bound_ms)


def certified(row: Row, told: Expected | None, condition: Condition) -> Row:
    """The row with the gap that its plan's file tells, if the plan still does what the file promises."""
    if told is None or row.error is not None:
        return row
    # What it costs in accuracy may have been measured on data that are not at hand now.
    now = msgspec.structs.replace(expected_of(row, condition, None), accuracy_drop_pct=told.accuracy_drop_pct)
    same = msgspec.structs.replace(told, bound_ms=None) == now
    return msgspec.structs.replace(row, gap_to_exact=told.gap) if same else row


def expected_of(row: Row, condition: Condition, bound_ms: float | None) -> Expected:
    """What a plan file promises; at six digits, which hide the last bits of sums taken on other machines.

    :param bound_ms: the proven bound on every allowed plan's latency, None where none is known.
    """
    assert row.latency_ms is not None  # only a plan that worked is promised

    def digits(value: float) -> float:
        return float(f"{value:.6g}")

    def known(value: float | None) -> float | None:
        return None if value is None else digits(value)

    gap = bounded(row, bound_ms).gap_to_exact
    if gap is None or bound_ms is None:
        bound_ms = None
    elif gap <= OPTIMAL_WITHIN:
        bound_ms = row.latency_ms
    else:
        bound_ms *= 1 - DIGITS  # so that digits make no plan look optimal
    return Expected(
        condition=str(condition),
        latency_ms=digits(row.latency_ms),
        accuracy_drop_pct=row.accuracy_drop_pct,
        frame_drop_rate=known(row.frame_drop_rate),
        peak_memory_mb=known(row.peak_memory_mb),
        energy_mj=known(row.energy_mj),
        evidence=row.evidence,
        bound_ms=known(bound_ms),
    )
