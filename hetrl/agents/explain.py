"""Two plans side by side, on the surrogate: where each spends its time, cut where both may be cut."""

from __future__ import annotations

from collections.abc import Sequence

from hetrl.condition import Condition
from hetrl.device_bridge.surrogate.breakdown import Position, breakdown, total
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.explanation import Explanation, Side, Stretch, conclude
from hetrl.graph import OperatorGraph
from hetrl.plan import Plan


def explain(
    winner: tuple[str, Plan], against: tuple[str, Plan], device: SurrogateDevice, condition: Condition
) -> Explanation:
    """Why a plan is faster (or slower) than another; both are given by name, and run."""
    mine, its = (device.simulate(plan, condition) for _, plan in (winner, against))
    stretches = _stretches(breakdown(mine), breakdown(its), device.graph)
    winner_ms, against_ms = (float(s.answers.latency_ms[0]) for s in (mine, its))
    return Explanation(
        winner=winner[0],
        against=against[0],
        winner_ms=winner_ms,
        against_ms=against_ms,
        saved_ms=against_ms - winner_ms,
        stretches=stretches,
        conclusion=conclude(winner[0], against[0], winner_ms, against_ms, stretches),
    )


def common_ends(mine: Sequence[Position], its: Sequence[Position]) -> list[int]:
    """Ends (exclusive) of the stretches: both have done the same groups there, one ends a segment, neither is in a
    shared one. Segments of one processor may be cut anywhere, as where they meet costs nothing."""
    ends = []
    open_groups: set[int] = set()  # done by one of the two alone
    for k, (a, b) in enumerate(zip(mine, its, strict=True)):
        open_groups ^= {a.group}
        open_groups ^= {b.group}
        if not open_groups and a.may_end and b.may_end and (a.ends or b.ends):
            ends.append(k + 1)
    return ends


def _stretches(mine: Sequence[Position], its: Sequence[Position], graph: OperatorGraph) -> tuple[Stretch, ...]:
    found = []
    begin = 0
    for end in common_ends(mine, its):
        nodes = [node for position in mine[begin:end] for node in graph.group_node_ids(position.group)]
        winner, against = (_side(positions[begin:end], graph) for positions in (mine, its))
        found.append(
            Stretch(
                first=nodes[0],
                last=nodes[-1],
                operators=len(nodes),
                winner=winner,
                against=against,
                saved=against.spent.plus(winner.spent, -1.0),
            )
        )
        begin = end
    return tuple(found)


def _side(positions: Sequence[Position], graph: OperatorGraph) -> Side:
    return Side(
        processors=tuple(dict.fromkeys(name for position in positions for name in position.processors)),
        shared_operators=sum(len(graph.groups[p.group].nodes) for p in positions if len(p.processors) > 1),
        spent=total(positions),
    )
