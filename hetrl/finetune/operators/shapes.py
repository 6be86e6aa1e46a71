"""Operators that make shapes, change them, or make constants of a shape."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from hetrl.errors import ModelError
from hetrl.finetune.node import Array, Call, Operators


def reshape(call: Call) -> Tensor:
    return call.x.reshape(target_shape(call))


def target_shape(call: Call) -> list[int]:
    """The shape that a Reshape asks for, its zeros and its -1 resolved."""
    wanted = call.integers("shape", 1) or []
    if not call.node.integer("allowzero", 0):
        wanted = [call.x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    if -1 in wanted:
        known = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = call.x.numel() // max(1, known)
    return wanted


def flatten(call: Call) -> Tensor:
    axis = call.node.integer("axis", 1)
    axis = axis % call.x.ndim if axis < 0 else axis
    return call.x.reshape(math.prod(call.x.shape[:axis]), -1)


def transpose(call: Call) -> Tensor:
    order = call.node.integers("perm")
    return call.x.permute(tuple(reversed(range(call.x.ndim))) if order is None else tuple(order))


def squeeze(call: Call) -> Tensor:
    axes = call.axes(call.x.ndim)
    if axes is None:
        axes = [axis for axis, size in enumerate(call.x.shape) if size == 1]
    if any(call.x.shape[axis] != 1 for axis in axes):
        raise ModelError(f"the node {call.node.label} squeezes an axis that is longer than 1")
    return call.x.reshape([size for axis, size in enumerate(call.x.shape) if axis not in axes])


def unsqueeze(call: Call) -> Tensor:
    axes = call.integers("axes", 1) or []
    rank = call.x.ndim + len(axes)
    x = call.x
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def expand(call: Call) -> Tensor:
    wanted = call.integers("shape", 1) or []
    return call.x.expand(torch.broadcast_shapes(tuple(call.x.shape), tuple(wanted)))


def tile(call: Call) -> Tensor:
    return call.x.tile(tuple(call.integers("repeats", 1) or ()))


def shape(call: Call) -> Tensor:
    start, end = call.node.integer("start", 0), call.node.integer("end", call.x.ndim)
    return torch.tensor(list(call.x.shape)[start:end], dtype=torch.int64)


def size(call: Call) -> Tensor:
    return torch.tensor(call.x.numel())


def constant(call: Call) -> Tensor:
    names = ("value", "value_float", "value_floats", "value_int", "value_ints")
    name = next((name for name in names if call.node.has(name)), None)
    if name is None:
        raise call.refuse("a constant of strings or of sparse numbers")
    value = call.node.array(name)
    # Numbers outside a tensor are Python's here, and ONNX's are of 32 bits if float, of 64 if integer.
    return tensor(value.astype(np.float32) if name.startswith("value_float") else value)


def tensor(array: Array) -> Tensor:
    """A copy as training has it: half types become single precision."""
    known = array.dtype.kind in "fiub" and array.dtype.itemsize <= 8
    return single(torch.tensor(array if known else array.astype(np.float32)))  # numpy itself has no bfloat16


def single(x: Tensor) -> Tensor:
    """Half types become single precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def constant_of_shape(call: Call) -> Tensor:
    fill = tensor(call.node.array("value")) if call.node.has("value") else torch.zeros(1)
    return fill.reshape(()).expand(tuple(int(size) for size in call.x.tolist())).clone()


def range_(call: Call) -> Tensor:
    start, limit, delta = (call.tensor(position) for position in range(3))
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def depth_to_space(call: Call) -> Tensor:
    block = call.node.integer("blocksize", 1)
    n, c, h, w = call.x.shape
    small = c // block**2
    if call.node.text("mode", "DCR") == "CRD":
        x = call.x.reshape(n, small, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        x = call.x.reshape(n, block, block, small, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, small, h * block, w * block)


def space_to_depth(call: Call) -> Tensor:
    block = call.node.integer("blocksize", 1)
    n, c, h, w = call.x.shape
    x = call.x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


OPERATORS: Operators = {
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Range": range_,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "SpaceToDepth": space_to_depth,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
