"""Operators without weights in ncnn: elementwise arithmetic, and what moves data."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from hetrl.device_bridge.runner.engines.ncnn import blob_name
from hetrl.partition.ncnn_layer import Array, Layer, Params, Weight
from hetrl.partition.ncnn_scope import Scope, Shape, memory, reshape

BINARY = {"Add": 0, "Sum": 0, "Sub": 1, "Mul": 2, "Div": 3, "Max": 4, "Min": 5}
REVERSED = {1: 7, 3: 8}  # b - a, b / a
SQUARE, POWER = 4, 6  # of UnaryOp, of BinaryOp
UNARY = {
    "Abs": 0, "Neg": 1, "Floor": 2, "Ceil": 3, "Sqrt": 5, "Exp": 7, "Log": 8, "Sin": 9, "Cos": 10, "Tan": 11,
    "Reciprocal": 15,
}  # fmt: skip
# Orders of Permute, each as the output's dimensions from the innermost, by the input's names.
PERMUTE = {
    2: ("wh", "hw"),
    3: ("whc", "hwc", "wch", "cwh", "hcw", "chw"),
    4: (
        "whdc", "hwdc", "wdhc", "dwhc", "hdwc", "dhwc", "whcd", "hwcd", "wchd", "cwhd", "hcwd", "chwd",
        "wdch", "dwch", "wcdh", "cwdh", "dcwh", "cdwh", "hdcw", "dhcw", "hcdw", "chdw", "dchw", "cdhw",
    ),
}  # fmt: skip
NEAREST, BILINEAR, BICUBIC = 1, 2, 3
PAD_MODES = {"constant": 0, "edge": 1, "reflect": 2}


def binary(scope: Scope) -> list[Layer]:
    """Sizes of 1 stretch as numpy's do, which ncnn does only for operands of the same rank."""
    if len(scope.node.input) != 2:
        raise scope.refuse(f"has {len(scope.node.input)} operands")
    kind, out = BINARY[scope.node.op_type], scope.shape_out
    values = scope.constant(0), scope.constant(1)
    for index, value in enumerate(values):
        other = scope.node.input[1 - index]
        if value is not None and value.size == 1 and values[1 - index] is None and scope.inner(other) == out:
            kind = kind if index else REVERSED.get(kind, kind)
            params: Params = {0: kind, 1: 1, 2: float(value.reshape(()))}
            name = blob_name(scope.id)
            return [Layer("BinaryOp", name, (blob_name(other),), (name,), params, (), (scope.id,))]
    before: list[Layer] = []
    reads, shapes = [], []
    for index, value in enumerate(values):
        layers, read, shape = _operand(scope, index, value, out)
        before += layers
        reads.append(read)
        shapes.append(shape)
    if out not in shapes:
        raise scope.refuse("stretches both operands")
    name = blob_name(scope.id)
    return [*before, Layer("BinaryOp", name, tuple(reads), (name,), {0: kind}, (), (scope.id,))]


def _operand(scope: Scope, index: int, value: Array | None, out: Shape) -> tuple[list[Layer], str, Shape]:
    """Layers that bring an operand to the rank of the result, its blob and its shape."""
    name = scope.node.input[index]
    if value is not None:
        shape = (1,) * (len(out) + 1 - value.ndim) + value.shape
        if shape[0] != 1 or len(shape) != len(out) + 1:
            raise scope.refuse("has a constant with a batch")
        blob = scope.side(f"constant{index}")
        return [memory(scope, blob, value.reshape(shape[1:]))], blob, shape[1:]
    given, inner = scope.onnx_shape(name), scope.inner(name)
    if len(inner) == len(out):
        return [], blob_name(name), inner
    shape = (1,) * (len(out) - len(given)) + given  # its own batch meets a dimension of the result
    blob = scope.side(f"operand{index}")
    return [reshape(scope, blob_name(name), blob, shape)], blob, shape


def power(scope: Scope) -> list[Layer]:
    """BinaryOp's power goes through a logarithm, so that only powers without negative operands can be told to it."""
    exponent = scope.weights(1, "exponent")
    if exponent.size != 1 or scope.shape_in != scope.shape_out:
        raise scope.refuse("has several exponents")
    value = float(exponent.reshape(-1)[0])
    if value == 2:
        return [scope.layer("UnaryOp", {0: SQUARE})]
    if value.is_integer():
        raise scope.refuse(f"to the power of {value:g}, of numbers that may be negative")
    return [scope.layer("BinaryOp", {0: POWER, 1: 1, 2: value})]


def unary(scope: Scope) -> list[Layer]:
    scope.inner(scope.node.input[0])
    return [scope.layer("UnaryOp", {0: UNARY[scope.node.op_type]})]


def activation(scope: Scope) -> list[Layer]:
    """Operators of one input that have a layer of their own."""
    scope.inner(scope.node.input[0])
    kind, number = scope.node.op_type, scope.number
    table: dict[str, tuple[str, Params]] = {
        "Relu": ("ReLU", {}),
        "LeakyRelu": ("ReLU", {0: number("alpha", 0.01)}),
        "Sigmoid": ("Sigmoid", {}),
        "Tanh": ("TanH", {}),
        "Elu": ("ELU", {0: number("alpha", 1.0)}),
        "Softplus": ("Softplus", {}),
        "Mish": ("Mish", {}),
        "Erf": ("Erf", {}),
        "Gelu": ("GELU", {0: int(scope.word("approximate", "none") == "tanh")}),
        "HardSigmoid": ("HardSigmoid", {0: number("alpha", 0.2), 1: number("beta", 0.5)}),
        "HardSwish": ("HardSwish", {0: 1 / 6, 1: 0.5}),
    }
    return [scope.layer(*table[kind])]


def clip(scope: Scope) -> list[Layer]:
    limits = []
    for index, name, least in ((1, "min", -math.inf), (2, "max", math.inf)):
        given = scope.weights(index, name).reshape(()) if scope.has(index) else scope.number(name, least)
        limits.append(float(np.clip(given, np.finfo(np.float32).min, np.finfo(np.float32).max)))
    scope.inner(scope.node.input[0])
    return [scope.layer("Clip", dict(enumerate(limits)))]


def prelu(scope: Scope) -> list[Layer]:
    slope = scope.weights(1, "slope")
    channels = scope.shape_in[0]
    if slope.size not in (1, channels) or (slope.size > 1 and slope.shape[:1] != (channels,)):
        raise scope.refuse("has a slope for each place")
    return [scope.layer("PReLU", {0: slope.size}, Weight(slope.reshape(-1)))]


def softmax(scope: Scope) -> list[Layer]:
    rank = len(scope.shape_in) + 1
    axis = scope.axis(scope.integer("axis", -1 if scope.opset >= 13 else 1), rank)
    if scope.opset < 13 and axis != rank - 2:
        raise scope.refuse("is over several dimensions at once")
    return [scope.layer("Softmax", {0: axis, 1: 1})]


def view(scope: Scope) -> list[Layer]:
    """The same numbers in another shape, or in the same."""
    before, after = scope.shape_in, scope.shape_out
    if before == after:
        return [scope.layer("Noop")]
    if len(after) == 1:
        return [scope.layer("Flatten")]
    return [reshape(scope, blob_name(scope.node.input[0]), blob_name(scope.id), after)]


def transpose(scope: Scope) -> list[Layer]:
    rank = len(scope.shape_in)
    order = scope.integers("perm") or tuple(range(rank, -1, -1))
    if order[0] != 0:
        raise scope.refuse("moves the batch")
    names = {1: "w", 2: "hw", 3: "chw", 4: "cdhw"}[rank]
    word = "".join(names[axis - 1] for axis in order[:0:-1])
    if word == names[::-1]:
        return [scope.layer("Noop")]
    return [scope.layer("Permute", {0: PERMUTE[rank].index(word)})]


def concat(scope: Scope) -> list[Layer]:
    axis = scope.axis(scope.integer("axis", 1), len(scope.onnx_shape(scope.id)))
    before, reads = [], []
    for index, name in enumerate(scope.node.input):
        value = scope.constant(index)
        reads.append(blob_name(name) if value is None else scope.side(f"constant{index}"))
        if value is not None:
            before.append(memory(scope, reads[-1], value.reshape(value.shape[1:])))
        else:
            scope.inner(name)
    name = blob_name(scope.id)
    return [*before, Layer("Concat", name, tuple(reads), (name,), {0: axis}, (), (scope.id,))]


def crop(scope: Scope) -> list[Layer]:
    """A Slice with steps of 1."""
    shape = scope.onnx_shape(scope.node.input[0])
    starts, ends = scope.ints(1, "starts") or (), scope.ints(2, "ends") or ()
    axes, steps = scope.ints(3, "axes") or tuple(range(len(starts))), scope.ints(4, "steps") or (1,) * len(starts)
    kept: dict[int, tuple[int, int]] = {}
    for start, end, given, step in zip(starts, ends, axes, steps, strict=True):
        axis = given % len(shape)
        first, last, _ = slice(start, end, step).indices(shape[axis])
        if step != 1:
            raise scope.refuse(f"takes every {step}th element")
        if (first, last) != (0, shape[axis]):
            kept[scope.axis(axis, len(shape))] = first, last
    scope.inner(scope.node.input[0])
    scope.inner(scope.id)
    if not kept:
        return [scope.layer("Noop")]
    firsts, lasts = zip(*kept.values(), strict=True)
    return [scope.layer("Crop", {9: firsts, 10: lasts, 11: tuple(kept)})]


def gather(scope: Scope) -> list[Layer]:
    """Neighbours, taken in order: a Crop, and a Reshape where the indices are no list (a single one drops the axis)."""
    indices = scope.weights(1, "index").reshape(-1).tolist()
    before, after = scope.shape_in, scope.shape_out
    axis = scope.axis(scope.integer("axis", 0), len(before) + 1)
    places = [i + before[axis] if i < 0 else i for i in indices]
    first, last = places[0], places[0] + len(places)
    if places != list(range(max(0, first), min(last, before[axis]))):
        raise scope.refuse("takes elements that are not neighbours in order")
    cut = scope.layer("Crop", {9: (first,), 10: (last,), 11: (axis,)})
    if after == (*before[:axis], len(places), *before[axis + 1 :]):
        return [cut]
    part = scope.side("part")
    return [replace(cut, name=part, writes=(part,)), reshape(scope, part, blob_name(scope.id), after)]


def split(scope: Scope) -> list[Layer]:
    shape = scope.onnx_shape(scope.node.input[0])
    axis = scope.axis(scope.integer("axis", 0), len(shape))
    scope.inner(scope.node.input[0])
    if not all(scope.node.output):
        raise scope.refuse("leaves an output away")
    sizes = tuple(scope.onnx_shape(name)[axis + 1] for name in scope.node.output)
    writes = tuple(blob_name(name) for name in scope.node.output)
    return [Layer("Slice", writes[0], (blob_name(scope.node.input[0]),), writes, {0: sizes, 1: axis}, (), (scope.id,))]


def resize(scope: Scope) -> list[Layer]:
    channels, height, width = scope.map_size(scope.node.input[0])
    out_channels, *out = scope.map_size(scope.id)
    mode = scope.word("mode", "nearest")
    where = scope.word("coordinate_transformation_mode", "half_pixel")
    scales = scope.constant(2) if len(scope.node.input) > 2 else None
    exact = scales is None or scales.size == 0 or np.allclose(scales[2:] * (height, width), out, rtol=1e-6)
    if out_channels != channels or not exact or scope.integer("antialias", 0):
        raise scope.refuse("resizes channels, or to a size that its scales do not give")
    whole = out[0] % height == 0 and out[1] % width == 0
    rounding = scope.word("nearest_mode", "round_prefer_floor")
    centred = where in ("half_pixel", "pytorch_half_pixel")
    rounds_down = (where == "asymmetric" and rounding == "floor") or (
        whole and centred and rounding.startswith("round")
    )
    nearest = mode == "nearest" and rounds_down
    corners = where == "align_corners"
    smooth = mode in ("linear", "cubic") and (corners or (centred and min(out) > 1))
    if mode == "cubic" and not math.isclose(scope.number("cubic_coeff_a", -0.75), -0.75):
        smooth = False
    if not (nearest or smooth):
        raise scope.refuse(f"mode {mode!r} with {where!r}")
    kind = {"nearest": NEAREST, "linear": BILINEAR, "cubic": BICUBIC}[mode]
    return [scope.layer("Interp", {0: kind, 3: out[0], 4: out[1], 6: int(corners)})]


def pad(scope: Scope) -> list[Layer]:
    shape = scope.shape_in
    given = scope.ints(1, "pads") or ()
    if scope.has(3) or len(given) != 2 * (len(shape) + 1):
        raise scope.refuse("names axes")
    first, last = (list(side) for side in (given[: len(shape) + 1], given[len(shape) + 1 :]))
    mode = scope.word("mode", "constant")
    if first[0] or last[0] or mode not in PAD_MODES or len(shape) != 3 or min(given) < 0:
        raise scope.refuse(f"pads by {list(given)}, mode {mode!r}")
    if (first[1] or last[1]) and mode != "constant":
        raise scope.refuse(f"pads channels, mode {mode!r}")
    value = float(scope.weights(2, "value").reshape(())) if scope.has(2) else scope.number("value", 0.0)
    sides: Params = {0: first[2], 1: last[2], 2: first[3], 3: last[3], 7: first[1], 8: last[1]}
    return [scope.layer("Padding", {**sides, 4: PAD_MODES[mode], 5: value})]


def depth_to_space(scope: Scope) -> list[Layer]:
    scope.map_size(scope.node.input[0])
    mode = int(scope.word("mode", "DCR") == "DCR")
    return [scope.layer("PixelShuffle", {0: scope.integer("blocksize", 1), 1: mode})]


def space_to_depth(scope: Scope) -> list[Layer]:
    scope.map_size(scope.node.input[0])
    return [scope.layer("Reorg", {0: scope.integer("blocksize", 1), 1: 1})]
