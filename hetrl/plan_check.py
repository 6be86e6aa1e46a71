"""Whether a plan fits a model: the invariants that need the operator graph."""

from __future__ import annotations

from hetrl.errors import PlanError
from hetrl.graph import OperatorGraph
from hetrl.plan import Axis, ModelRef, Plan


def model_ref(graph: OperatorGraph) -> ModelRef:
    """How a plan names this model."""
    return ModelRef(graph.name, graph.structure_hash, graph.weights_hash)


def check_plan(plan: Plan, graph: OperatorGraph) -> tuple[tuple[int, ...], ...]:
    """Check a plan against its model.

    :return: the fusion groups of each segment, in the plan's order.
    :raises PlanError: another model; a node that is missing, unknown, or out of order; a cut fusion group; a segment
        that is not convex, or that cannot be split the way it is.
    """
    if plan.model.structure_sha256 != graph.structure_hash:
        raise PlanError(
            "model.structure_sha256",
            f"the plan is for another model ({plan.model.name!r}) than {graph.name!r}",
            "give the model that the plan was made for with --model, and the --input-shape that it had",
        )
    if None not in (plan.model.weights_sha256, graph.weights_hash) and plan.model.weights_sha256 != graph.weights_hash:
        raise PlanError("model.weights_sha256", f"the plan is for other weights of {graph.name!r}")
    segments = tuple(_groups_of(plan, graph, index) for index in range(len(plan.segments)))
    missing = set(range(len(graph.groups))) - {group for segment in segments for group in segment}
    if missing:
        raise PlanError("segments", f"node {graph.group_node_ids(min(missing))[0]!r} is in no segment")
    done: set[int] = set()
    for index, groups in enumerate(segments):
        where = f"segments[{index}]"
        members = set(groups)
        if not graph.is_convex(members):
            raise PlanError(f"{where}.nodes", "is not convex: a path between two of its operators leaves it")
        for group in groups:
            late = [p for p in graph.predecessors[group] if p not in done and p not in members]
            if late:
                reader, read = graph.group_node_ids(group)[0], graph.group_node_ids(late[0])[-1]
                raise PlanError(f"{where}.nodes", f"{reader!r} reads {read!r} of a later segment")
        _check_split(plan, graph, index, groups)
        done |= members
    return segments


def _groups_of(plan: Plan, graph: OperatorGraph, index: int) -> tuple[int, ...]:
    where = f"segments[{index}].nodes"
    nodes = plan.segments[index].nodes
    groups: dict[int, set[int]] = {}
    for node in nodes:
        number = graph.node_index.get(node)
        if number is None:
            raise PlanError(where, f"{node!r} is no operator of {graph.name!r}")
        groups.setdefault(graph.group_of_node[number], set()).add(number)
    for group, members in groups.items():
        cut = set(graph.groups[group].nodes) - members
        if cut:
            raise PlanError(
                where, f"cuts a fusion group: {graph.nodes[min(cut)].id!r} belongs to {nodes[0]!r}'s segment"
            )
    return tuple(sorted(groups))


def _check_split(plan: Plan, graph: OperatorGraph, index: int, groups: tuple[int, ...]) -> None:
    segment = plan.segments[index]
    where = f"segments[{index}].axis"
    if segment.axis is Axis.OUTPUT_CHANNELS and len(groups) > 1:
        raise PlanError(
            where, "output_channels splits one fusion group; a chain of several is split along height, or into branches"
        )
    for group in groups if segment.axis is not Axis.NONE else ():
        able = graph.groups[group]
        if not (able.splits_height if segment.axis is Axis.HEIGHT else able.splits_channels):
            raise PlanError(where, f"{graph.group_node_ids(group)[0]!r} cannot be split along {segment.axis.value}")
