"""Which plan a format is given, and what is said of it: the user's own, or the best one that it carries."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec.structs import replace

from hetrl.accuracy import PREDICTED_DROPS
from hetrl.compression import NO_COMPRESSION
from hetrl.condition import Condition
from hetrl.errors import Infeasible, UsageError
from hetrl.export.base import OF_MODEL, Claims, Exporter, Limit, Order, Wish, grouped
from hetrl.export.expected import SAME, condition_of, in_sequence, predicted, promise
from hetrl.export.whole import whole_model
from hetrl.export.writing import Said
from hetrl.graph import OperatorGraph
from hetrl.objective import Objective
from hetrl.plan import Expected

_FEW = 3  # limits that fit into an error's line
PLACEMENT = ("segments", "overlap")  # fields whose loss another placement may make up for


def as_it_is(exporter: Exporter, given: Order, graph: OperatorGraph) -> tuple[Order, Said]:
    """The given plan, without what the format has no word for.

    :param graph: of the original model.
    :raises Infeasible: the format cannot carry it.
    """
    claims = exporter.claims(given.plan, given.graph)
    _require_model(exporter, claims)
    if claims.refused:
        raise Infeasible(
            f"{exporter.name} cannot carry the plan: {_in_words(claims.refused)}",
            "--lower exports the best plan that it can carry",
        )
    expected = _expected(exporter, given, graph, condition_of(given.plan), claims)
    own = given.plan.expected
    return given, Said(expected, claims.left_out, given=None if _alike(expected, own) else own)


def _alike(one: Expected | None, other: Expected | None) -> bool:
    """Whether two promises are the same but for the digits that a plan file holds."""
    if one is None or other is None:
        return one is other
    return math.isclose(one.latency_ms, other.latency_ms, rel_tol=SAME)


def lowered(exporter: Exporter, given: Order, graph: OperatorGraph, objective: Objective) -> tuple[Order, Said]:
    """The given plan if the format carries all of it, or else the best one that it does.

    :param graph: of the original model.
    :param objective: what another placement has to keep.
    :raises Infeasible: there is none.
    """
    plan, condition = given.plan, condition_of(given.plan)
    claims = exporter.claims(plan, given.graph)
    limits = (*claims.refused, *claims.left_out)
    _require_model(exporter, claims)
    limited = objective.max_frame_drop_rate is not None and condition.ui is not None
    if not limits and not limited:
        return as_it_is(exporter, given, graph)
    if given.spec is None:
        raise UsageError(f"{plan.device!r} is not known here, so nothing can be lowered", "name its file with --device")
    drop_pct = None if plan.expected is None else plan.expected.accuracy_drop_pct
    before = None
    if not plan.stretched:
        measured = predicted(plan, graph, given.spec, condition)
        before = promise(measured, condition, PREDICTED_DROPS.of_plan(plan) if drop_pct is None else drop_pct)
    whole = plan.compression.changes and not exporter.carries.compression
    model, runs = (replace(plan, compression=NO_COMPRESSION), graph) if whole else (plan, given.graph)
    wish = Wish(model, runs, given.spec, condition, objective)
    other = exporter.carried(model, runs)  # operators stay where they are, without the settings that are lost
    moves = bool(claims.refused) or any(limit.field in PLACEMENT for limit in claims.left_out)
    if moves or not wish.keeps(predicted(other, graph, given.spec, condition)):
        other = exporter.lowered(wish)
    elif not limits:
        return as_it_is(exporter, given, graph)
    order = Order(other, runs, given.spec, given.weighted)
    again = exporter.claims(other, runs)
    if again.refused:
        raise Infeasible(f"{exporter.name} carries no plan of this model: {_in_words(again.refused)}")
    expected = _expected(exporter, order, graph, condition, again, 0.0 if whole else drop_pct)
    changed = tuple(limit for limit in limits if limit not in again.left_out)
    return order, Said(expected, again.left_out, changed, before)


def _require_model(exporter: Exporter, claims: Claims) -> None:
    """:raises Infeasible: the format carries no plan of the model."""
    found = [limit for limit in claims.refused if limit.field == OF_MODEL]
    if found:
        raise Infeasible(f"{exporter.name} cannot carry the model: {found[0].reason}", "choose another format")


def _expected(
    exporter: Exporter,
    order: Order,
    graph: OperatorGraph,
    condition: Condition,
    claims: Claims,
    drop_pct: float | None = None,
) -> Expected | None:
    """What the device's planner says of what is carried; the maker's own word where nothing is left out.

    :param drop_pct: known of the plan that this one was made for.
    """
    plan = order.plan
    if plan.expected is not None and not claims.left_out:
        return plan.expected
    if order.spec is None or plan.stretched:
        return None
    there = exporter.carried(plan, order.graph)
    if plan.splits and not exporter.carries.shares_together and claims.left_out:
        if order.weighted is None:
            return None
        sequence, whole = in_sequence(there, whole_model(order.weighted.partitioner, plan), order.spec)
        measured = predicted(replace(sequence, compression=NO_COMPRESSION), whole, order.spec, condition)
    else:
        measured = predicted(there, graph, order.spec, condition)
    if drop_pct is None:
        drop_pct = plan.expected.accuracy_drop_pct if plan.expected else PREDICTED_DROPS.of_plan(plan)
    return promise(measured, condition, drop_pct)


def _in_words(limits: Sequence[Limit]) -> str:
    shown = [f"{limit.field}: {limit.reason}" for limit in grouped(limits)]
    more = len(shown) - _FEW
    return "; ".join(shown[:_FEW]) + (f"; and {more} more" if more > 0 else "")
