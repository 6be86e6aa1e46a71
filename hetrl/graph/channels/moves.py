"""Operators that move data: channels go where it goes."""

from __future__ import annotations

import numpy as np

from hetrl.graph.channels.atoms import FIXED, Axis, Layout, bounds, joined
from hetrl.graph.channels.products import broadcast
from hetrl.graph.channels.tracer import Tracer
from hetrl.graph.operator import Operator

Results = list[Layout] | None


def shape_of(op: Operator, position: int = 0) -> tuple[int, ...]:
    """Sizes of an operand."""
    operand = op.operands[position]
    assert operand is not None
    return operand.shape


def numbers(op: Operator, attribute: str, position: int) -> tuple[int, ...] | None:
    """Integers that are an attribute in old versions of an operator, and an operand in new ones; None if unknown."""
    operand = op.operand(position)
    if operand is not None:
        return operand.values
    return op.attributes.integers(attribute, ()) if op.attributes.has(attribute) else None


def transposed(t: Tracer, op: Operator) -> Results:
    layout = t.of(op, 0)
    order = op.attributes.integers("perm", tuple(reversed(range(len(layout)))))
    return [tuple(layout[axis] for axis in order)]


def concatenated(t: Tracer, op: Operator) -> Results:
    rank = len(op.out.shape)
    axis = op.attributes.integer("axis", 1) % rank
    layouts = [t.of(op, position) for position in range(len(op.operands))]
    sizes = [shape_of(op, position)[axis] for position in range(len(op.operands))]
    result: list[Axis] = []
    for place in range(rank):
        if place == axis:
            result.append(joined([(layout[axis], size) for layout, size in zip(layouts, sizes, strict=True)]))
            continue
        for layout in layouts[1:]:
            t.link(layouts[0][place], layout[place], op)
        fixed = any(layout[place] is None for layout in layouts)
        result.append(None if fixed else layouts[0][place])
    return [tuple(result)]


def split_sizes(op: Operator) -> list[int] | None:
    """Sizes of all outputs of a Split, those that nobody reads included."""
    axis = op.attributes.integer("axis", 0)
    size, count = shape_of(op)[axis], len(op.outputs)
    given = numbers(op, "split", 1)
    if given is not None:
        return list(given) if len(given) == count and sum(given) == size else None
    if op.operand(1) is not None or count == 0:
        return None
    each = -(-size // count)
    return [min(each, max(size - number * each, 0)) for number in range(count)]


def split(t: Tracer, op: Operator) -> Results:
    layout, sizes = t.of(op, 0), split_sizes(op)
    axis = op.attributes.integer("axis", 0) % len(layout)
    if sizes is None:
        return None
    ends = dict(zip(op.outputs, bounds(sizes), strict=True))
    labels, results = layout[axis], []
    for result in op.results:
        begin, end = ends[result.name]
        part = None if labels is None or end - begin == 1 else labels[begin:end]
        if part is None and labels is not None:
            t.lock(labels[begin:end], op, "takes it by itself")
        results.append((*layout[:axis], part, *layout[axis + 1 :]))
    return results


def ranges(op: Operator) -> dict[int, slice] | None:
    """What a Slice takes, by axis; None where that is not known or goes backwards."""
    shape = shape_of(op)
    starts, ends = numbers(op, "starts", 1), numbers(op, "ends", 2)
    axes, steps = numbers(op, "axes", 3), numbers(op, "steps", 4)
    if starts is None or ends is None or (axes is None and op.operand(3)) or (steps is None and op.operand(4)):
        return None
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if min(steps, default=1) < 1:
        return None
    found = zip(axes, starts, ends, steps, strict=True)
    return {axis % len(shape): slice(*slice(b, e, s).indices(shape[axis])) for axis, b, e, s in found}


def sliced(t: Tracer, op: Operator) -> Results:
    taken = ranges(op)
    if taken is None:
        return None
    layout = list(t.of(op, 0))
    for axis, part in taken.items():
        labels = layout[axis]
        if labels is None:
            continue
        if part.step > 1 or len(labels[part]) == 1:
            t.lock(labels, op, "takes single places of it")
            layout[axis] = None
        else:
            layout[axis] = labels[part]
    return [tuple(layout)]


def padded(t: Tracer, op: Operator) -> Results:
    """Zeros (or another number) beside the channels stay."""
    layout, rank = list(t.of(op, 0)), len(op.out.shape)
    pads = numbers(op, "pads", 1) or numbers(op, "paddings", 1)
    axes = numbers(op, "axes", 3)
    if pads is None or (axes is None and op.operand(3) is not None):
        return None
    axes = tuple(range(rank)) if axes is None else tuple(axis % rank for axis in axes)
    constant = op.attributes.text("mode", "constant") == "constant"
    for number, axis in enumerate(axes):
        before, after, labels = pads[number], pads[number + len(axes)], layout[axis]
        if labels is None or (before == 0 and after == 0):
            continue
        if min(before, after) < 0 or not constant:
            t.lock(labels, op, "pads along it")
            layout[axis] = None
        else:
            layout[axis] = np.pad(labels, (before, after), constant_values=FIXED)
    return [tuple(layout)]


def gathered(t: Tracer, op: Operator) -> Results:
    layout, shape = t.of(op, 0), shape_of(op)
    indices = op.operands[1]
    assert indices is not None
    axis = op.attributes.integer("axis", 0) % len(shape)
    labels, picked = layout[axis], indices.values
    middle: Layout = (None,) * len(indices.shape)
    if labels is not None and indices.constant and picked is not None and len(picked) > 1:
        taken = labels[np.array(picked)]
        t.give(1, (taken,))
        middle = (taken,)
    elif labels is not None:
        known = indices.constant and picked is not None
        t.lock(labels[np.array(picked)] if known else labels, op, "picks from it")
    return [(*layout[:axis], *middle, *layout[axis + 1 :])]


def expanded(t: Tracer, op: Operator) -> Results:
    """Repeated places are as free as what they meet later: the shape that is asked for follows."""
    source, out = shape_of(op), op.out.shape
    layout = (*(None,) * (len(out) - len(source)), *t.of(op, 0))
    sizes = (*(1,) * (len(out) - len(source)), *source)
    axes = zip(layout, sizes, out, strict=True)
    return [tuple(t.atoms.fresh(to) if size == 1 and to > 1 else axis for axis, size, to in axes)]


def tiled(t: Tracer, op: Operator) -> Results:
    axes = zip(t.of(op, 0), shape_of(op), op.out.shape, strict=True)
    return [tuple(None if axis is None else np.tile(axis, to // size) for axis, size, to in axes)]


def resized(t: Tracer, op: Operator) -> Results:
    if op.attributes.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    return [_same_sizes(t, op, "resizes along it")]


def depth_to_space(t: Tracer, op: Operator) -> Results:
    layout, labels = t.of(op, 0), t.of(op, 0)[1]
    t.keep(layout[2:], op, "spreads over it")
    blocks, out = op.attributes.integer("blocksize", 1) ** 2, op.out.shape[1]
    if labels is None or out == 1:
        t.lock(labels, op, "leaves one channel of it")
        return [(layout[0], None, None, None)]
    columns = op.attributes.text("mode", "DCR") == "DCR"
    grid = labels.reshape(blocks, out).T if columns else labels.reshape(out, blocks)
    t.link(grid[:, :1], grid, op)
    return [(layout[0], grid[:, 0], None, None)]


def space_to_depth(t: Tracer, op: Operator) -> Results:
    layout = t.of(op, 0)
    t.keep(layout[2:], op, "spreads over it")
    channels = layout[1]
    blocks = op.attributes.integer("blocksize", 1) ** 2
    return [(layout[0], None if channels is None else np.tile(channels, blocks), None, None)]


def pooled(t: Tracer, op: Operator) -> Results:
    if len(op.results) > 1:  # the places of maxima count all channels
        return None
    layout = t.of(op, 0)
    t.keep(layout[2:], op, "slides along it")
    return [(*layout[:2], *(None for _ in op.out.shape[2:]))]


def reduced(t: Tracer, op: Operator) -> Results:
    """A channel of zeros changes no sum; it changes a mean, and may be a maximum."""
    layout, rank = t.of(op, 0), len(shape_of(op))
    axes = numbers(op, "axes", 1)
    if op.op_type in ("ArgMax", "ArgMin"):
        axes = (op.attributes.integer("axis", 0),)
    elif axes is None and op.operand(1) is not None:
        return None
    if not axes:
        axes = () if op.attributes.integer("noop_with_empty_axes", 0) else tuple(range(rank))
    over = {axis % rank for axis in axes}
    if op.op_type not in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"):
        t.keep(tuple(layout[axis] for axis in over), op, "reduces over it")
    if op.attributes.integer("keepdims", 1):
        return [tuple(None if axis in over else labels for axis, labels in enumerate(layout))]
    return [tuple(labels for axis, labels in enumerate(layout) if axis not in over)]


def normalized_along(t: Tracer, op: Operator) -> Results:
    """Softmax, LogSoftmax, Hardmax; before version 13 along all axes from `axis` on."""
    layout = t.of(op, 0)
    axis = op.attributes.integer("axis", 1) % len(layout) if op.attributes.has("axis") else 1
    t.keep(layout[axis:], op, "runs along it")
    return [layout]


def pointwise(t: Tracer, op: Operator) -> Results:
    """All operands meet element by element."""
    count = 1 if op.op_type == "CastLike" else len(op.operands)
    operands = [(t.of(op, i), shape_of(op, i)) for i in range(count) if op.operands[i] is not None]
    return [broadcast(t, op, operands, op.out.shape)]


def quantized(t: Tracer, op: Operator) -> Results:
    """One scale and zero point, or one for each place of `axis`."""
    layout = t.of(op, 0)
    axis = op.attributes.integer("axis", 1)
    for position in (1, 2):
        operand = op.operand(position)
        if operand is None or operand.elements <= 1:
            continue
        if len(operand.shape) != 1:  # one for each block
            return None
        t.link(t.of(op, position)[0], layout[axis], op)
    return [layout]


def _same_sizes(t: Tracer, op: Operator, why: str) -> Layout:
    result: list[Axis] = []
    for labels, size, to in zip(t.of(op, 0), shape_of(op), op.out.shape, strict=True):
        if size != to:
            t.lock(labels, op, why)
        result.append(labels if size == to else None)
    return tuple(result)
