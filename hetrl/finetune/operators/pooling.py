"""Pools over windows and over everything. Pads are made explicit, so that any pads and sizes of ONNX work."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hetrl.finetune.node import Call, Operators
from hetrl.finetune.operators.windows import Pads, Window, torch_pads, window

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def max_pool(call: Call) -> Tensor:
    if len(call.node.outputs) > 1 and call.node.outputs[1]:
        raise call.refuse("the output Indices")
    w, over, sizes = _window(call)
    lowest = -math.inf if call.x.is_floating_point() else torch.iinfo(call.x.dtype).min
    padded = F.pad(F.pad(call.x, torch_pads(w.pads), value=lowest), torch_pads(over), value=lowest)
    return _cut(_MAX[len(sizes)](padded, w.kernel, w.strides, 0, w.dilations), sizes)


def average_pool(call: Call) -> Tensor:
    """The mean of what a window covers: of the input alone, or of its pads as well (`count_include_pad`)."""
    w, over, sizes = _window(call)
    if any(dilation > 1 for dilation in w.dilations):
        raise call.refuse("a dilated AveragePool")
    pool = _AVERAGE[len(sizes)]
    include = call.node.integer("count_include_pad", 0)
    padded = F.pad(call.x, torch_pads(_sum(w.pads, over)))
    mean = _cut(pool(padded, w.kernel, w.strides), sizes)
    if not any(size for pair in (*over, *(() if include else w.pads)) for size in pair):
        return mean
    ones = F.pad(call.x.new_ones((1, 1, *call.x.shape[2:])), torch_pads(w.pads), value=float(include))
    covered = pool(F.pad(ones, torch_pads(over)), w.kernel, w.strides)
    return mean / _cut(covered, sizes)


def global_average(call: Call) -> Tensor:
    return call.x.mean(tuple(range(2, call.x.ndim)), keepdim=True)


def global_max(call: Call) -> Tensor:
    return call.x.amax(tuple(range(2, call.x.ndim)), keepdim=True)


def _window(call: Call) -> tuple[Window, Pads, tuple[int, ...]]:
    """The window, what must be added at the ends for `ceil_mode`, and the output's sizes."""
    w = window(call, call.node.integers("kernel_shape") or [])
    if len(w.kernel) not in _MAX:
        raise call.refuse(f"a pool over {len(w.kernel)} axes")
    ceil = call.node.integer("ceil_mode", 0)
    sizes, over = [], []
    for size, stride, extent, (begin, end) in zip(call.x.shape[2:], w.strides, w.extents, w.pads, strict=True):
        room = size + begin + end - extent
        out = (-(-room // stride) if ceil else room // stride) + 1
        if ceil and (out - 1) * stride >= size + begin:  # a window must begin inside the input or its first pad
            out -= 1
        sizes.append(out)
        over.append((0, max(0, (out - 1) * stride - room)))
    return w, tuple(over), tuple(sizes)


def _sum(one: Pads, two: Pads) -> Pads:
    return tuple((a + c, b + d) for (a, b), (c, d) in zip(one, two, strict=True))


def _cut(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    for axis, size in enumerate(sizes, 2):
        x = x.narrow(axis, 0, size)
    return x


OPERATORS: Operators = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average,
    "GlobalMaxPool": global_max,
}
