"""Operators that pick elements, or put tensors side by side."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hetrl.finetune.node import Call, Operators

_MODES: dict[str, Literal["reflect", "edge", "wrap"]] = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def concat(call: Call) -> Tensor:
    return torch.cat(call.present, call.axis(0))


def split(call: Call) -> tuple[Tensor, ...]:
    """By sizes as attribute or operand, else into equal parts, of which the last may be smaller."""
    axis = call.axis(0)
    sizes = call.integers("split", 1)
    if sizes is None:
        parts = call.node.integer("num_outputs", len(call.node.outputs))
        return torch.split(call.x, -(-call.x.shape[axis] // parts), axis)
    return torch.split(call.x, sizes, axis)


def slice_(call: Call) -> Tensor:
    starts, ends = call.integers("starts", 1) or [], call.integers("ends", 2) or []
    axes = call.integers("axes", 3)
    steps = call.integers("steps", 4) or [1] * len(starts)
    x = call.x
    for axis, *bounds in zip(range(len(starts)) if axes is None else axes, starts, ends, steps, strict=True):
        start, stop, step = slice(*bounds).indices(x.shape[axis])
        if step == 1:
            x = x.narrow(axis, start, max(0, stop - start))
        else:
            x = x.index_select(axis, torch.arange(start, stop, step) if (stop - start) * step > 0 else torch.arange(0))
    return x


def gather(call: Call) -> Tensor:
    axis, indices = call.axis(0), _from_front(call.tensor(1), call.x.shape[call.axis(0)])
    picked = call.x.index_select(axis, indices.reshape(-1))
    return picked.reshape((*call.x.shape[:axis], *indices.shape, *call.x.shape[axis + 1 :]))


def gather_elements(call: Call) -> Tensor:
    axis = call.axis(0)
    return call.x.gather(axis, _from_front(call.tensor(1), call.x.shape[axis]))


def gather_nd(call: Call) -> Tensor:
    if call.node.integer("batch_dims", 0):
        raise call.refuse("GatherND with batch_dims")
    indices = call.tensor(1)
    return call.x[tuple(indices.movedim(-1, 0))]


def scatter_nd(call: Call) -> Tensor:
    if call.node.text("reduction", "none") != "none":
        raise call.refuse("ScatterND with a reduction")
    indices = tuple(call.tensor(1).movedim(-1, 0))
    return call.x.index_put(indices, call.tensor(2))


def one_hot(call: Call) -> Tensor:
    depth, values = int(call.tensor(1)), call.tensor(2)
    chosen = F.one_hot(call.x.long() % depth, depth).bool()
    axis = call.node.integer("axis", -1)
    return torch.where(chosen.movedim(-1, axis), values[1], values[0])


def trilu(call: Call) -> Tensor:
    k = call.optional(1)
    function = torch.triu if call.node.integer("upper", 1) else torch.tril
    return function(call.x, 0 if k is None else int(k))


def pad(call: Call) -> Tensor:
    mode = call.node.text("mode", "constant")
    pairs = _pads(call)
    if mode == "constant":
        value = call.optional(2)
        fill = call.node.number("value", 0.0) if value is None else value.item()
        return F.pad(call.x, [size for axis in reversed(range(call.x.ndim)) for size in pairs[axis]], value=fill)
    x = call.x
    for axis, (begin, end) in enumerate(pairs):
        if begin or end:
            inside = np.arange(x.shape[axis])[max(0, -begin) : x.shape[axis] - max(0, -end)]
            order = np.pad(inside, (max(0, begin), max(0, end)), mode=_MODES[mode])
            x = x.index_select(axis, torch.from_numpy(order))
    return x


def _pads(call: Call) -> list[tuple[int, int]]:
    """Begin and end of each axis; negative ones cut."""
    sizes = call.integers("pads", 1) or []
    axes = call.optional(3)
    chosen = list(range(call.x.ndim)) if axes is None else [int(a) % call.x.ndim for a in axes.tolist()]
    pairs = [(0, 0)] * call.x.ndim
    for axis, begin, end in zip(chosen, sizes[: len(chosen)], sizes[len(chosen) :], strict=True):
        pairs[axis] = (begin, end)
    return pairs


def _from_front(indices: Tensor, size: int) -> Tensor:
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


OPERATORS: Operators = {
    "Concat": concat,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "Pad": pad,
    "ScatterND": scatter_nd,
    "Slice": slice_,
    "Split": split,
    "Trilu": trilu,
}
