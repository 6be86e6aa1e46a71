"""Integers that operators read as sizes, bounds and indices of channels, for the channels that are left."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from hetrl.graph.channels import Axes, ChannelAxis, Traced
from hetrl.graph.channels.atoms import bounds
from hetrl.graph.channels.moves import numbers, ranges, split_sizes
from hetrl.graph.operator import Operator

Mask = NDArray[np.bool_]


class Stated(msgspec.Struct, frozen=True):
    """Integers for an operator.

    :param position: of the operand that holds them; None for an attribute.
    :param scalar: a number instead of a vector.
    :param instead_of: attributes that say the same in another way.
    """

    name: str
    values: tuple[int, ...]
    position: int | None
    dtype: str = "int64"
    scalar: bool = False
    instead_of: tuple[str, ...] = ()


def holds_indices(op: Operator, position: int) -> bool:
    """Whether the numbers of an operand are places of an axis, rather than lie along it."""
    return op.op_type == "Gather" and position == 1


def stated(step: Traced, stays: Mask, version: int) -> Iterator[Stated]:
    """What an operator must state now.

    :param version: of ONNX's operators.
    """
    op = step.operator
    match op.op_type:
        case "Reshape":
            yield _shape(step, stays)
        case "Expand":
            yield _expanded(step, stays)
        case "Slice":
            yield from _sliced(step, stays)
        case "Split" if _mask(step.operands[0], op.attributes.integer("axis", 0), stays) is not None:
            yield _split(step, stays, version)
        case "Gather":
            yield from _gathered(step, stays)
        case "Resize" if (sizes := op.operand(3)) is not None and sizes.values:
            axes = op.attributes.integers("axes", tuple(range(len(op.out.shape))))
            now = _sizes(op.out.shape, step.results[0], stays)
            yield Stated("sizes", tuple(now[axis] for axis in axes), 3)


def _shape(step: Traced, stays: Mask) -> Stated:
    """-1 and 0 go on to mean what they mean, where they do."""
    op = step.operator
    operand = op.operand(1)
    given = numbers(op, "shape", 1) if operand is None or operand.values is not None else None
    source = op.operands[0]
    assert source is not None
    now, old = _sizes(op.out.shape, step.results[0], stays), _sizes(source.shape, step.operands[0], stays)
    values = list(given) if given is not None and len(given) == len(now) else list(now)
    for axis, value in enumerate(values):
        copies = value == 0 and not op.attributes.integer("allowzero", 0)
        if value > 0 or (copies and old[axis] != now[axis]):
            values[axis] = now[axis]
    return Stated("shape", tuple(values), None if operand is None else 1)


def _expanded(step: Traced, stays: Mask) -> Stated:
    op = step.operator
    operand = op.operands[1]
    now = _sizes(op.out.shape, step.results[0], stays)
    if operand is None or operand.values is None:
        return Stated("shape", now, 1)
    skipped = len(now) - len(operand.values)
    values = [1 if value == 1 else now[skipped + axis] for axis, value in enumerate(operand.values)]
    return Stated("shape", tuple(values), 1)


def _sliced(step: Traced, stays: Mask) -> Iterator[Stated]:
    op = step.operator
    taken = ranges(op)
    starts, ends = numbers(op, "starts", 1), numbers(op, "ends", 2)
    if taken is None or starts is None or ends is None:
        return
    begins, stops = list(starts), list(ends)
    for number, (axis, part) in enumerate(taken.items()):
        mask = _mask(step.operands[0], axis, stays)
        if mask is not None:
            begins[number] = int(mask[: part.start].sum())
            stops[number] = begins[number] + int(mask[part].sum())
    for name, position, values in (("starts", 1, begins), ("ends", 2, stops)):
        operand = op.operand(position)
        yield Stated(name, tuple(values), position if operand else None, operand.dtype if operand else "int64")


def _split(step: Traced, stays: Mask, version: int) -> Stated:
    op = step.operator
    mask, sizes = _mask(step.operands[0], op.attributes.integer("axis", 0), stays), split_sizes(op)
    assert mask is not None and sizes is not None
    values = tuple(int(mask[begin:end].sum()) for begin, end in bounds(sizes))
    return Stated("split", values, 1 if version >= 13 else None, instead_of=("num_outputs",))


def _gathered(step: Traced, stays: Mask) -> Iterator[Stated]:
    op = step.operator
    indices, source = op.operands[1], op.operands[0]
    assert indices is not None and source is not None
    axis = op.attributes.integer("axis", 0) % len(source.shape)
    mask = _mask(step.operands[0], axis, stays)
    if mask is None or indices.values is None:
        return
    place = np.cumsum(mask) - 1
    values = tuple(int(place[index]) for index in indices.values if mask[index])
    yield Stated("indices", values, 1, indices.dtype, scalar=not indices.shape)


def _mask(axes: Axes, axis: int, stays: Mask) -> Mask | None:
    found: ChannelAxis | None = axes[axis]
    return None if found is None else np.where(found.atoms < 0, True, stays[found.atoms])


def _sizes(shape: tuple[int, ...], axes: Axes, stays: Mask) -> tuple[int, ...]:
    masks = [_mask(axes, axis, stays) for axis in range(len(shape))]
    return tuple(size if mask is None else int(mask.sum()) for size, mask in zip(shape, masks, strict=True))
