"""All plans for one problem, measured and set against the best single processor and the proven bound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from hetrl.agents.explain import explain
from hetrl.agents.infeasible import Tried, infeasible
from hetrl.agents.problem import Problem
from hetrl.agents.rows import row_of
from hetrl.errors import UnknownName, UsageError
from hetrl.explanation import Explanation
from hetrl.measurement import Measurement
from hetrl.plan import Plan
from hetrl.results import Comparison, Row, best_single

SAME = 1e-9  # of a latency: the same, summed in another order


def measured_in_turns(problem: Problem, plans: Iterable[Plan]) -> dict[str, Measurement]:
    """What each plan gave, by its key; measured in turns on a device that can do so."""
    distinct = {plan.key: plan for plan in plans}
    answers = problem.device.compare(list(distinct.values()), problem.condition)
    return dict(zip(distinct, answers, strict=True))


def rows_in_turns(problem: Problem, named: Sequence[tuple[str, Plan]]) -> list[Row]:
    """A row for every name; plans that go by several names are measured once."""
    found = measured_in_turns(problem, (plan for _, plan in named))
    return [row_of(name, plan, found[plan.key], problem) for name, plan in named]


def compared(problem: Problem, rows: Sequence[Row], plans: Mapping[str, Plan]) -> Comparison:
    """The rows, fastest first, with their speed-ups and gaps.

    :param plans: of the rows, by name. The bound is on compressions that the run may choose.
    """
    known = problem.knows_optimum
    bound_ms = problem.optimum.bound_ms if known and math.isfinite(problem.optimum.bound_ms) else None
    single = best_single(rows)
    rows = sorted(rows, key=lambda r: (r.latency_ms is None, r.latency_ms))
    single_ms = single.latency_ms if single else None
    bounds = {name: bound_ms for name, plan in plans.items() if plan.compression.shapes in problem.space.compressions}
    rows = [_against(row, bounds.get(row.policy), single_ms) for row in rows]
    winner = next((r.policy for r in rows if r.keeps_budgets), None)
    refused = None
    if winner is None:
        # Plans for another network keep no budget, whatever it is.
        others = {name for name, plan in plans.items() if plan.stretched}
        mine = [row for row in rows if row.policy not in others]
        tried = [Tried(r.policy, r.accuracy_drop_pct, r.frame_drop_rate, r.error) for r in mine]
        refused = str(infeasible(tried, problem.objective)) if tried else "no plan is for this network"
    return Comparison(
        device=problem.planner.spec.id,
        model=problem.graph.name,
        engine=problem.planner.engine_name,
        condition=str(problem.condition),
        rows=tuple(rows),
        winner=winner,
        exact_ms=problem.optimum.latency_ms if known and problem.optimum.proven else None,
        bound_ms=bound_ms,
        infeasible=refused,
    )


def _against(row: Row, bound_ms: float | None, single_ms: float | None) -> Row:
    if row.latency_ms is None:
        return row
    bounded = bound_ms is not None and row.keeps_budgets  # the bound is on plans that keep the budgets
    return msgspec.structs.replace(
        row,
        gap_to_exact=(row.latency_ms - bound_ms) / bound_ms if bounded and bound_ms else None,
        speedup_over_single=single_ms / row.latency_ms if single_ms else None,
    )


def explained(
    problem: Problem, comparison: Comparison, plans: Mapping[str, Plan], against: str | None
) -> Explanation | None:
    """The winner against a named row, or against the next one that is slower; None where there is none.

    :raises UnknownName: no row of that name.
    :raises UsageError: that row has no numbers or is the winner; or the device's inner workings are not known.
    """
    if problem.device is not problem.planner:
        raise UsageError(
            f"{comparison.device} does not say where its time goes", "explain the plans on a surrogate: --device d1"
        )
    rows = {row.policy: row for row in comparison.rows}
    if against is not None and against not in rows:
        raise UnknownName("policy", against, rows, "hetrl compare")
    if comparison.winner is None:
        return None
    if against is None:
        against = _runner_up(comparison)
    elif against == comparison.winner:
        raise UsageError(f"{against} is the winner", "leave --against away, or name another row")
    elif rows[against].latency_ms is None:
        raise UsageError(f"{against} did not run: {rows[against].error}", "name another row")
    if against is None:
        return None
    chosen = ((name, plans[name]) for name in (comparison.winner, against))
    return explain(next(chosen), next(chosen), problem.planner, problem.condition)


def _runner_up(comparison: Comparison) -> str | None:
    """The fastest row that keeps the budgets and is slower than the winner: as fast means the same plan, or a tie."""
    kept = [row for row in comparison.rows if row.keeps_budgets and row.latency_ms is not None]
    best_ms = kept[0].latency_ms or 0.0
    return next((row.policy for row in kept if (row.latency_ms or 0.0) > best_ms * (1 + SAME)), None)
