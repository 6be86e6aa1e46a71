"""Views: axes that merge or part, in the order of elements."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from hetrl.graph.channels.atoms import Axis, Labels, Layout
from hetrl.graph.channels.tracer import Tracer
from hetrl.graph.operator import Operator

_MIXES = "mixes it with another axis"


def viewed(t: Tracer, op: Operator) -> list[Layout] | None:
    """Reshape, Flatten, Squeeze, Unsqueeze, Identity, ...: the shapes tell what they do."""
    source = op.operands[0]
    if source is None or source.elements != op.out.elements or source.elements == 0:
        return None
    return [reshaped(t, op, source.shape, t.of(op, 0), op.out.shape)]


def reshaped(t: Tracer, op: Operator, source: tuple[int, ...], layout: Layout, out: tuple[int, ...]) -> Layout:
    """Where the channels of `layout` are in a tensor of the same elements in another shape."""
    result: list[Axis] = [None] * len(out)
    for before, after in _blocks(source, out):
        labelled = [axis for axis in before if layout[axis] is not None]
        if len(labelled) > 1:
            for axis in labelled:
                t.lock(layout[axis], op, _MIXES)
        elif labelled:
            axis = labelled[0]
            labels = layout[axis]
            assert labels is not None
            if len(before) == len(after) == 1:
                result[after[0]] = labels
                continue
            lead = math.prod(source[a] for a in before if a < axis)
            trail = math.prod(source[a] for a in before if a > axis)
            place, found = _parted(t, op, labels, (lead, trail), [out[a] for a in after])
            result[after[place]] = found
    return tuple(result)


def _blocks(source: tuple[int, ...], out: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of axes of both shapes that have as many elements; axes of size 1 are in none."""
    before, after = [a for a, s in enumerate(source) if s > 1], [a for a, s in enumerate(out) if s > 1]
    while before:
        mine, theirs = [before.pop(0)], [after.pop(0)]
        left, right = source[mine[0]], out[theirs[0]]
        while left != right:
            if left < right:
                mine.append(before.pop(0))
                left *= source[mine[-1]]
            else:
                theirs.append(after.pop(0))
                right *= out[theirs[-1]]
        yield mine, theirs


def _parted(t: Tracer, op: Operator, labels: Labels, around: tuple[int, int], sizes: list[int]) -> tuple[int, Axis]:
    """Channels between `around` other places, as one of several axes: the place among `sizes`, and its labels.

    A tensor stays rectangular if all that lies at one place of that axis goes together.
    """
    lead, trail = around
    behind = trail if sizes[-1] % trail == 0 else 1  # need not be written out: it stays part of the last axis
    shape = [*sizes[:-1], sizes[-1] // behind]
    grid = np.tile(np.repeat(labels, trail // behind), lead).reshape(shape)
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    free = [axis for axis in axes if _constant_along_others(grid, axis)]
    options = free[:1] or sorted(axes, key=lambda axis: (-shape[axis], -axis))
    axis = options[t.choose(op, len(options))] if len(options) > 1 else options[0]
    along = np.moveaxis(grid, axis, -1).reshape(-1, shape[axis])
    t.link(along[:1], along, op, _MIXES)
    if len(options) > 1:
        t.chosen(along[0])
    return axis, np.repeat(along[0], behind) if axis == len(sizes) - 1 else along[0]


def _constant_along_others(grid: Labels, axis: int) -> bool:
    along = np.moveaxis(grid, axis, -1).reshape(-1, grid.shape[axis])
    return bool((along == along[0]).all())
