"""Convolutions and products: what they sum over goes together, and what their weights make is new."""

from __future__ import annotations

import numpy as np

from hetrl.graph.channels.atoms import Axis, Layout
from hetrl.graph.channels.tracer import Role, Tracer
from hetrl.graph.operator import Operator

Results = list[Layout] | None

_WINDOW = "slides along it"
_GROUPED = "has as many channels in each group"
# Positions of the data, the kernel, and what has one number per output.
_CONVOLUTIONS = {
    "Conv": (0, 1, (2,)),
    "ConvTranspose": (0, 1, (2,)),
    "QLinearConv": (0, 3, (4, 5, 8)),
    "ConvInteger": (0, 1, (3,)),
}
_FACTORS = {"QLinearMatMul": (0, 3), "MatMul": (0, 1), "MatMulInteger": (0, 1)}


def convolved(t: Tracer, op: Operator) -> Results:
    data, kernel, vectors = _CONVOLUTIONS[op.op_type]
    x, w = t.of(op, data), t.of(op, kernel)
    t.keep((*x[2:], *w[2:]), op, _WINDOW)
    groups = op.attributes.integer("group", 1)
    transposed = op.op_type == "ConvTranspose"
    makes = 1 if transposed else 0
    t.mark(op, kernel, makes, Role.MAKES)
    t.mark(op, kernel, 1 - makes, Role.TAKES)
    if groups == 1:
        t.link(x[1], w[1 - makes], op)
        out = w[makes]
    elif transposed:
        out = _transposed_groups(t, op, x[1], w, groups)
    else:
        out = _groups(t, op, x[1], w, groups)
    _link_vectors(t, op, vectors, out)
    return [(x[0], out, *(None for _ in x[2:]))]


def _link_vectors(t: Tracer, op: Operator, positions: tuple[int, ...], out: Axis) -> None:
    for position in positions:
        operand = op.operand(position)
        if operand is not None and operand.elements > 1:
            t.link(t.of(op, position)[0], out, op)
            t.mark(op, position, 0, Role.SHIFTS)


def _groups(t: Tracer, op: Operator, x: Axis, w: Layout, groups: int) -> Axis:
    """Either whole groups of channels go, or as many of each group at the same places."""
    makes, takes = w[0], w[1]
    if makes is None:
        t.lock(x, op, "makes one channel")
        return None
    depth, out_groups = op.activations[0].shape[1] // groups, makes.reshape(groups, -1)
    if x is None:
        t.lock(makes if depth == 1 else takes, op, "reads channels that stay")
        t.link(out_groups[:1], out_groups, op)
        return makes
    x_groups = x.reshape(groups, -1)
    if depth == 1 or t.choose(op, 2) == 1:
        t.link(x_groups[:, :1], x_groups, op)
        t.link(x_groups[:, :1], out_groups, op)
        t.lock(takes, op, "reads all of it in each group")
        t.count("group", x_groups[:, 0])
        if depth > 1:
            t.chosen(x_groups[:, 0])
        return makes
    t.link(x_groups[:1], x_groups, op, _GROUPED)
    t.link(out_groups[:1], out_groups, op, _GROUPED)
    t.link(x_groups[0], takes, op)
    t.chosen(x_groups[0])
    return makes


def _transposed_groups(t: Tracer, op: Operator, x: Axis, w: Layout, groups: int) -> Axis:
    """The kernel is inputs x outputs of one group."""
    out = op.out.shape[1] // groups
    if x is None:
        t.keep(w[:2], op, "reads channels that stay")
        return None
    t.link(x, w[0], op)
    if x.size == groups:
        t.lock(w[1], op, "makes as many channels of each")
        t.count("group", x)
        t.mark(op, 1, 0, Role.MAKES)
        return np.repeat(x, out)
    x_groups = x.reshape(groups, -1)
    t.link(x_groups[:1], x_groups, op, _GROUPED)
    return None if w[1] is None else np.tile(w[1], groups)


def gemm(t: Tracer, op: Operator) -> Results:
    a, b = t.of(op, 0), t.of(op, 1)
    left, right = op.attributes.integer("transA", 0), op.attributes.integer("transB", 0)
    rows, depth = (a[1], a[0]) if left else (a[0], a[1])
    deep, columns = (b[1], b[0]) if right else (b[0], b[1])
    t.link(depth, deep, op)
    t.mark(op, 1, 1 if right else 0, Role.TAKES)
    t.mark(op, 1, 0 if right else 1, Role.MAKES)
    t.mark(op, 0, 0 if left else 1, Role.TAKES)
    t.mark(op, 0, 1 if left else 0, Role.MAKES)
    out: Layout = (rows, columns)
    bias = op.operand(2)
    if bias is not None:
        layouts = [(out, op.out.shape), (t.of(op, 2), bias.shape)]
        t.mark(op, 2, len(bias.shape) - 1, Role.SHIFTS)
        out = broadcast(t, op, layouts, op.out.shape)
    return [out]


def multiplied(t: Tracer, op: Operator) -> Results:
    """numpy.matmul: leading axes broadcast, a factor of one axis loses it."""
    first, second = _FACTORS[op.op_type]
    left, right = op.operands[first], op.operands[second]
    if left is None or right is None or len(left.shape) < 2 or len(right.shape) < 2:
        return None
    if op.op_type != "MatMul" and any(
        o is not None and o.elements > 1 for i, o in enumerate(op.operands) if i not in (first, second)
    ):
        return None  # scales per row or column
    a, b = t.of(op, first), t.of(op, second)
    t.link(a[-1], b[-2], op)
    rank_a, rank_b = len(a), len(b)
    t.mark(op, second, rank_b - 2, Role.TAKES)
    t.mark(op, second, rank_b - 1, Role.MAKES)
    t.mark(op, first, rank_a - 1, Role.TAKES)
    t.mark(op, first, rank_a - 2, Role.MAKES)
    batch = broadcast(t, op, [(a[:-2], left.shape[:-2]), (b[:-2], right.shape[:-2])], op.out.shape[:-2])
    return [(*batch, a[-2], b[-1])]


def summed(t: Tracer, op: Operator) -> Results:
    """Einsum: one axis per letter."""
    equation = op.attributes.text("equation", "").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    names = terms.split(",")
    if not arrow or "." in equation or len(names) != len(op.operands):
        return None
    axes: dict[str, Axis] = {}
    for position, name in enumerate(names):
        operand = op.operands[position]
        if operand is None or len(name) != len(operand.shape):
            return None
        for number, (letter, axis) in enumerate(zip(name, t.of(op, position), strict=True)):
            if letter in axes:
                t.link(axes[letter], axis, op)
                axes[letter] = None if axis is None else axes[letter]
            else:
                axes[letter] = axis
            t.mark(op, position, number, Role.MAKES if letter in result else Role.TAKES)
    return [tuple(axes[letter] for letter in result)]


def broadcast(t: Tracer, op: Operator, operands: list[tuple[Layout, tuple[int, ...]]], out: tuple[int, ...]) -> Layout:
    """Operands that meet element by element, aligned from the right: axes of more than one place agree.

    :param operands: layouts with their shapes.
    """
    result: list[Axis] = []
    for behind in range(len(out), 0, -1):
        found: list[Axis] = [
            layout[-behind] for layout, shape in operands if len(shape) >= behind and shape[-behind] != 1
        ]
        for labels in found[1:]:
            t.link(found[0], labels, op)
        result.append(None if not found or any(labels is None for labels in found) else found[0])
    return tuple(result)
