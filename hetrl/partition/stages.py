"""A plan's segments as the steps of a job: neighbours on one processor are one step, unless it idles in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hetrl.graph import OperatorGraph
from hetrl.plan import Axis, Part, Plan
from hetrl.plan_check import check_plan


@dataclass(frozen=True)
class Stage:
    """Fusion groups (ascending) that are placed as one.

    :param segment: number of the plan's segment, of the first one where several are one stage.
    """

    segment: int
    groups: tuple[int, ...]
    parts: tuple[Part, ...]
    axis: Axis

    @property
    def processors(self) -> frozenset[str]:
        return frozenset(part.processor for part in self.parts)

    def leaving(self, graph: OperatorGraph) -> tuple[str, ...]:
        """Its tensors that are read outside of it, or are the model's outputs."""
        members, outputs = set(self.groups), set(graph.outputs)
        outside = [i.tensor for group in graph.groups if group.index not in members for i in group.inputs]
        read = outputs.union(outside)
        inner = [name for g in self.groups for n in graph.groups[g].nodes for name in graph.nodes[n].outputs]
        return tuple(name for name in inner if name in read)


def stages(plan: Plan, graph: OperatorGraph) -> tuple[Stage, ...]:
    """The plan's steps in its order.

    In a plan that overlaps, a run of groups on one processor is cut where it waits for another processor's work, and
    where another one waits for it: a group starts as soon as its operands are there.

    :raises PlanError: the plan does not fit the graph.
    """
    segments = [
        Stage(number, groups, segment.parts, segment.axis)
        for number, (segment, groups) in enumerate(zip(plan.segments, check_plan(plan, graph), strict=True))
    ]
    idling = {cap.processor for cap in plan.caps if cap.duty < 1}
    merged: list[Stage] = []
    for stage in segments:
        last = merged[-1] if merged else None
        if last and stage.axis is Axis.NONE and last.parts == stage.parts and stage.processors.isdisjoint(idling):
            merged[-1] = replace(last, groups=tuple(sorted(last.groups + stage.groups)))
        else:
            merged.append(stage)
    return tuple(piece for stage in merged for piece in _cut(stage, merged, graph)) if plan.overlap else tuple(merged)


def _cut(stage: Stage, all_stages: Sequence[Stage], graph: OperatorGraph) -> list[Stage]:
    """A stage of one processor, cut at its exchanges with others."""
    if stage.axis is not Axis.NONE:
        return [stage]
    elsewhere = {g for other in all_stages if other.processors != stage.processors for g in other.groups}
    read_elsewhere = {p for g in elsewhere for p in graph.predecessors[g]}
    pieces: list[list[int]] = []
    awaited: set[int] = set()
    handed_over = True
    for group in stage.groups:
        waits_for = elsewhere.intersection(graph.predecessors[group]) - awaited
        if handed_over or waits_for:
            pieces.append([])
        pieces[-1].append(group)
        awaited |= waits_for
        handed_over = group in read_elsewhere
    return [replace(stage, groups=tuple(groups)) for groups in pieces]
