"""Resize and Upsample, one axis after the other: every output is a weighted sum of a few inputs along the axis.

Coordinates are computed in single precision, as ONNX Runtime does, so that ties round alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetrl.finetune.node import Call, Operators

FIRST_BY_COORDINATES = 11  # before this opset, Resize had no choice of coordinates
Coordinates = NDArray[np.float32]
Taps = list[tuple[NDArray[np.int64], NDArray[np.float64]]]

_ROUNDINGS: dict[str, Callable[[Coordinates], Coordinates]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
}


def resize(call: Call) -> Tensor:
    if call.node.integer("antialias", 0) or call.node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refuse("antialias or keep_aspect_ratio_policy")
    old = call.node.opset < FIRST_BY_COORDINATES
    scales, sizes = call.optional(1 if old else 2), call.optional(3)
    chosen = call.node.integers("axes")
    if sizes is not None and sizes.numel():
        targets = [int(size) for size in sizes.tolist()]
        axes = _axes(call, chosen, len(targets))
        # The batch is never resized: where its size is written down, it is that of the export.
        wanted = {a: (t, t / call.x.shape[a]) for a, t in zip(axes, targets, strict=True) if chosen or a > 0}
    elif scales is not None:
        factors = [float(factor) for factor in scales.tolist()]
        axes = _axes(call, chosen, len(factors))
        wanted = {a: (math.floor(call.x.shape[a] * f), f) for a, f in zip(axes, factors, strict=True)}
    else:
        raise call.refuse("a Resize without scales and sizes")
    how = call.node.text("coordinate_transformation_mode", "half_pixel")
    return _resized(call, wanted, "asymmetric" if old else how, call.node.text("nearest_mode", "round_prefer_floor"))


def upsample(call: Call) -> Tensor:
    """The older form of Resize, with scales as attribute or operand."""
    scales = call.optional(1)
    factors = call.node.numbers("scales") if scales is None else [float(factor) for factor in scales.tolist()]
    wanted = {axis: (math.floor(call.x.shape[axis] * f), f) for axis, f in enumerate(factors or [])}
    return _resized(call, wanted, "asymmetric", "floor")


def _axes(call: Call, chosen: Sequence[int] | None, count: int) -> list[int]:
    return list(range(count)) if chosen is None else [axis % call.x.ndim for axis in chosen]


def _resized(call: Call, wanted: dict[int, tuple[int, float]], how: str, rounding: str) -> Tensor:
    mode = call.node.text("mode", "nearest")
    x = call.x
    for axis, (size, factor) in wanted.items():
        if factor == 1:
            continue
        at = coordinates(size, x.shape[axis], np.float32(factor), how)
        if at is None:
            raise call.refuse(f"a Resize with {how}")
        if mode == "nearest":
            if call.node.op_type == "Resize" and call.node.opset < FIRST_BY_COORDINATES:
                rounding = "ceil" if factor < 1 else "floor"
            picked = np.clip(_ROUNDINGS[rounding](at), 0, x.shape[axis] - 1).astype(np.int64)
            x = x.index_select(axis, torch.from_numpy(picked))
        else:
            taps = _linear(at, x.shape[axis]) if mode == "linear" else _cubic(call, at, x.shape[axis])
            x = _weighted(x, axis, taps)
    return x


def coordinates(out: int, size: int, scale: np.float32, how: str) -> Coordinates | None:
    """Where each output lies among the inputs along an axis, None for an unknown way of counting."""
    index = np.arange(out, dtype=np.float32)
    half = np.float32(0.5)
    if how == "asymmetric":
        return index / scale
    if how == "align_corners":
        return index * np.float32((size - 1) / (out - 1)) if out > 1 else index * 0
    if how == "pytorch_half_pixel":
        return (index + half) / scale - half if out > 1 else index * 0
    if how == "half_pixel":
        return (index + half) / scale - half
    if how == "half_pixel_symmetric":
        centre = np.float32(size / 2 * (1 - out / (float(scale) * size)))
        return centre + (index + half) / scale - half
    return (index + half) / scale if how == "tf_half_pixel_for_nn" else None


def _linear(at: Coordinates, size: int) -> Taps:
    at = np.clip(at, 0, size - 1)
    low = np.floor(at).astype(np.int64)
    share = (at - low).astype(np.float64)
    return [(low, 1 - share), (np.minimum(low + 1, size - 1), share)]


def _cubic(call: Call, at: Coordinates, size: int) -> Taps:
    """Keys's kernel; taps outside count as the border, or not at all (`exclude_outside`)."""
    a = call.node.number("cubic_coeff_a", -0.75)
    low = np.floor(at).astype(np.int64)
    share = (at - low).astype(np.float64)
    distances = [share + 1, share, 1 - share, 2 - share]
    weights = [
        ((a * d - 5 * a) * d + 8 * a) * d - 4 * a if position in (0, 3) else ((a + 2) * d - (a + 3)) * d * d + 1
        for position, d in enumerate(distances)
    ]
    places = [low + offset for offset in (-1, 0, 1, 2)]
    if call.node.integer("exclude_outside", 0):
        weights = [np.where((p >= 0) & (p < size), w, 0) for p, w in zip(places, weights, strict=True)]
        total = np.sum(weights, axis=0)
        weights = [w / total for w in weights]
    return [(np.clip(p, 0, size - 1), w) for p, w in zip(places, weights, strict=True)]


def _weighted(x: Tensor, axis: int, taps: Taps) -> Tensor:
    shape = (-1, *[1] * (x.ndim - axis - 1))
    parts = [
        x.index_select(axis, torch.from_numpy(places)) * torch.from_numpy(weights).to(x.dtype).reshape(shape)
        for places, weights in taps
    ]
    return torch.stack(parts).sum(0)


OPERATORS: Operators = {"Resize": resize, "Upsample": upsample}
