"""What one processor does of one fusion group under one option, and the shapes by which it is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.surrogate.op_time import KIND_CODE, OpShapes
from hetrl.device_bridge.surrogate.workload import WorkItem, Workload
from hetrl.graph import Geometry, OpKind


@dataclass(frozen=True)
class Timed:
    """One processor's parts: where they belong (position, option, offset), and their shapes."""

    position: npt.NDArray[np.int64]
    option: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    shapes: OpShapes


@dataclass(frozen=True)
class Piece:
    """Rows and channels of one part of one group, before it is timed.

    :param front: whether it is the first of two operators that low rank has made of one.
    """

    position: int
    option: int
    offset: int
    processor: int
    rows: int
    channels: int
    in_channels: int
    read_fraction: float
    extra_fraction: float
    weight_fraction: float
    front: bool = False


def timed(workload: Workload, pieces: Sequence[Piece]) -> Timed | None:
    """The shapes of one processor's pieces, None if it has none."""
    if not pieces:
        return None
    where = np.array([(x.position, x.option, x.offset) for x in pieces], dtype=np.int64)
    return Timed(where[:, 0], where[:, 1], where[:, 2], _shapes(workload, pieces))


def _shapes(workload: Workload, pieces: Sequence[Piece]) -> OpShapes:
    geometries = [_geometry(workload.items[p.position], p) for p in pieces]
    first, extra = zip(*(_operands(workload, p) for p in pieces), strict=True)

    def ints(values: Sequence[int]) -> npt.NDArray[np.int64]:
        return np.array(values, dtype=np.int64)

    read = np.array([p.read_fraction for p in pieces])
    shapes = OpShapes(
        kind=ints([KIND_CODE[g.kind] for g in geometries]),
        batch=ints([g.batch for g in geometries]),
        in_channels=ints([p.in_channels for p in pieces]),
        out_channels=ints([p.channels for p in pieces]),
        out_h=ints([p.rows for p in pieces]),
        out_w=ints([g.out_w for g in geometries]),
        kernel_h=ints([g.kernel_h for g in geometries]),
        kernel_w=ints([g.kernel_w for g in geometries]),
        stride=ints([g.stride_h for g in geometries]),
        dilation=ints([g.dilation_h for g in geometries]),
        groups=ints([g.groups for g in geometries]),
        in_elements=np.array(first) * read,
        extra_elements=np.array(extra) * np.array([p.extra_fraction for p in pieces]),
        weight_elements=np.array([_weights(workload.items[p.position], p) * p.weight_fraction for p in pieces]),
    )
    padded = (shapes.batch * shapes.in_channels * shapes.in_h * shapes.in_w).astype(np.float64)
    windowed = np.isin(shapes.kind, [KIND_CODE[OpKind.CONV], KIND_CODE[OpKind.POOL]])
    channel_part = np.array([p.channels for p in pieces]) / np.array([max(1, g.out_channels) for g in geometries])
    by_channel = (shapes.kind == KIND_CODE[OpKind.POOL]) | (shapes.groups > 1)
    whole_rows = np.where(windowed, padded * np.where(by_channel, channel_part, 1.0), shapes.in_elements)
    return replace(shapes, in_elements=whole_rows)


def _operands(workload: Workload, piece: Piece) -> tuple[float, float]:
    """Elements of the first operand, and of all further ones together."""
    item = workload.items[piece.position]
    sizes = [workload.elements[read.tensor] for read in item.reads]
    first, extra = float(sizes[0] if sizes else 0), float(sum(sizes[1:]))
    if item.front is None:
        return first, extra
    between = item.front
    made = float(between.batch * between.out_channels * between.out_h * between.out_w)
    return (first, 0.0) if piece.front else (made, extra)


def _geometry(item: WorkItem, piece: Piece) -> Geometry:
    return item.front if piece.front and item.front else item.geometry


def _weights(item: WorkItem, piece: Piece) -> int:
    """Elements of what the piece's operator multiplies with."""
    if item.front is None:
        return item.weight_elements
    first = item.front.out_channels * item.front.in_channels * item.front.kernel_h * item.front.kernel_w
    return first if piece.front else item.weight_elements - first
