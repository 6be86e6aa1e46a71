"""Normalizations: one number per channel, or statistics over channels, which must not lose any."""

from __future__ import annotations

from hetrl.graph.channels.atoms import Axis, Layout
from hetrl.graph.channels.tracer import Role, Tracer
from hetrl.graph.operator import Operator

Results = list[Layout] | None


def per_channel(t: Tracer, op: Operator) -> Results:
    """BatchNormalization as inference does it, InstanceNormalization."""
    if len(op.results) > 1:
        return None
    layout = t.of(op, 0)
    if len(layout) < 2:
        return None
    if op.op_type == "InstanceNormalization":
        t.keep(layout[2:], op, "takes the mean over it")
    for position in range(1, len(op.operands)):
        _vector(t, op, position, layout[1])
    return [layout]


def over_last(t: Tracer, op: Operator) -> Results:
    """LayerNormalization, RMSNormalization: statistics over all axes from `axis` on."""
    if len(op.results) > 1:
        return None
    layout = t.of(op, 0)
    axis = op.attributes.integer("axis", -1) % len(layout)
    for position in range(1, len(op.operands)):
        if op.operands[position] is not None:
            t.keep(t.of(op, position), op, "takes the mean over it")
    t.keep(layout[axis:], op, "takes the mean over it")
    return [layout]


def over_groups(t: Tracer, op: Operator) -> Results:
    """GroupNormalization: whole groups go. Scale and shift are per group before version 21, then per channel."""
    layout, groups = t.of(op, 0), op.attributes.integer("num_groups", 1)
    channels = layout[1]
    t.keep(layout[2:], op, "takes the mean over it")
    if channels is None or groups == 1:
        t.lock(channels, op, "takes the mean over it")
        for position in (1, 2):
            t.keep(t.of(op, position), op, "takes the mean over it")
        return [layout]
    grid = channels.reshape(groups, -1)
    t.link(grid[:, :1], grid, op)
    t.count("num_groups", grid[:, 0])
    for position in (1, 2):
        operand = op.operands[position]
        wide = operand is not None and operand.elements == channels.size
        _vector(t, op, position, channels if wide else grid[:, 0])
    return [layout]


def over_neighbours(t: Tracer, op: Operator) -> Results:
    """LRN: without a channel, others would come into the windows of its neighbours."""
    layout = t.of(op, 0)
    t.lock(layout[1], op, "sums over neighbouring channels")
    return [layout]


def _vector(t: Tracer, op: Operator, position: int, channels: Axis) -> None:
    operand = op.operand(position)
    if operand is not None and operand.elements > 1:
        t.link(t.of(op, position)[0], channels, op)
        t.mark(op, position, 0, Role.SCALES if position == 1 else Role.SHIFTS)
