"""Time of one operator, or of a part of one, on one processor: an additive roofline.

The equations were found by fitting single-processor MACE latencies that CoDL (Jia et al., MobiSys'22, figures 15 and
16) measured on four phones: time = factor * ms_per_gmac * work + ms_per_mb * traffic + launch. Work is in 1e9
multiply-accumulates after the kernel's own rounding, traffic in 1e6 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.spec import Cost, CpuCost, GpuCost, RooflineCost
from hetrl.graph import OpKind

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

KINDS = tuple(OpKind)
KIND_CODE = {kind: code for code, kind in enumerate(KINDS)}
BYTES_PER_ELEMENT = 4  # the fits are of fp32 engines
SPILL_ABOVE_MB = 4.0  # a million elements: what a Hexagon's second-level cache holds in int8
FREE = KIND_CODE[OpKind.VIEW]
_CONV, _TRANSPOSED, _GEMM, _MATMUL = (
    KIND_CODE[k] for k in (OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.GEMM, OpKind.MATMUL)
)


@dataclass(frozen=True)
class OpShapes:
    """Shapes of many operators (or parts), one array entry each.

    `in_elements` and `extra_elements` (further operands) are what the part reads; `out_h` and `out_channels` are the
    part's own, and so is `weight_elements`.
    """

    kind: Ints
    batch: Ints
    in_channels: Ints
    out_channels: Ints
    out_h: Ints
    out_w: Ints
    kernel_h: Ints
    kernel_w: Ints
    stride: Ints
    dilation: Ints
    groups: Ints
    in_elements: Floats
    extra_elements: Floats
    weight_elements: Floats

    @property
    def in_h(self) -> Ints:
        """Padded input rows that the output rows need."""
        return (self.out_h - 1) * self.stride + (self.kernel_h - 1) * self.dilation + 1

    @property
    def in_w(self) -> Ints:
        return (self.out_w - 1) * self.stride + (self.kernel_w - 1) * self.dilation + 1

    @property
    def out_elements(self) -> Floats:
        return (self.batch * self.out_channels * self.out_h * self.out_w).astype(np.float64)


@dataclass(frozen=True)
class _Classes:
    """Which kernel each operator runs on."""

    winograd: npt.NDArray[np.bool_]
    pointwise: npt.NDArray[np.bool_]
    stride2: npt.NDArray[np.bool_]
    depthwise: npt.NDArray[np.bool_]
    direct: npt.NDArray[np.bool_]
    dense_row: npt.NDArray[np.bool_]


def _classes(ops: OpShapes) -> _Classes:
    conv = ops.kind == _CONV
    depthwise = conv & (ops.groups > 1) & (ops.groups >= ops.in_channels)
    plain = conv & ~depthwise
    square3 = (ops.kernel_h == 3) & (ops.kernel_w == 3) & (ops.dilation == 1) & (ops.groups == 1)
    winograd = plain & square3 & (ops.stride == 1) & (ops.in_channels >= 8) & (ops.out_channels >= 8)
    one = plain & (ops.kernel_h == 1) & (ops.kernel_w == 1) & (ops.groups == 1)
    dense_row = (ops.kind == _GEMM) & (ops.batch == 1)
    pointwise = one | (ops.kind == _MATMUL) | ((ops.kind == _GEMM) & ~dense_row)
    stride2 = plain & square3 & (ops.stride == 2) & (ops.in_channels >= 8) & (ops.out_channels >= 8)
    direct = (plain & ~winograd & ~one & ~stride2) | (ops.kind == _TRANSPOSED)
    return _Classes(winograd, pointwise, stride2, depthwise, direct, dense_row)


def _up(value: Ints, multiple: int) -> Ints:
    return -(-value // multiple) * multiple


def _megabytes(elements: Floats) -> Floats:
    return elements * (BYTES_PER_ELEMENT / 1e6)


def _traffic_mb(ops: OpShapes) -> Floats:
    return _megabytes(ops.in_elements + ops.extra_elements + ops.out_elements)


def cpu_time_ms(ops: OpShapes, cost: CpuCost) -> Floats:
    """Four-thread CPU: Winograd for 3x3 stride 1, GEMM for 1x1, direct convolution else.

    Winograd works on output tiles of 6x6, of 2x2 when the (part's) input has at most 16 rows or columns. Narrow
    direct convolutions fill 16 output channels, four threads of four. A dense layer on one row is all traffic.
    """
    kernel = _classes(ops)
    tile = np.where((ops.in_h > 16) & (ops.in_w > 16), 6, 2)
    tiles = ops.batch * -(-ops.out_h // tile) * -(-ops.out_w // tile)
    area = (tile + 2) ** 2
    pixels = ops.batch * ops.out_h * ops.out_w
    window = (ops.in_channels // ops.groups) * ops.kernel_h * ops.kernel_w
    work = np.select(
        [kernel.winograd, kernel.pointwise, kernel.stride2 | kernel.direct, kernel.depthwise],
        [
            tiles * area * ops.in_channels * _up(ops.out_channels, 8),
            pixels * ops.in_channels * _up(ops.out_channels, 8),
            pixels * window * _up(ops.out_channels, 16),
            pixels * window * ops.out_channels,
        ],
        0,
    )
    factor = np.select(
        [kernel.stride2, kernel.direct, kernel.depthwise],
        [cost.stride2_factor.value, cost.direct_factor.value, cost.depthwise_factor.value],
        1.0,
    )
    transforms_mb = np.where(
        kernel.winograd,
        (8.0 * tiles * area * (ops.in_channels + ops.out_channels) + 4.0 * area * ops.in_channels * ops.out_channels)
        / 1e6,
        _megabytes(ops.weight_elements),
    )
    time = cost.ms_per_gmac.value * factor * (work / 1e9)
    time = time + cost.ms_per_mb.value * (_traffic_mb(ops) + transforms_mb) + cost.launch_ms.value
    return np.where(ops.kind == FREE, 0.0, time)


def gpu_time_ms(ops: OpShapes, cost: GpuCost, *, friendly: bool) -> Floats:
    """OpenCL GPU: direct kernels on 4x4x4 tiles of columns, input and output channels; no Winograd.

    `friendly`: whether tensors lie in the memory type that the GPU likes. In the other one convolutions slow down by
    `unfriendly_factor`, 1x1 ones by a share of the excess; what only moves data does not.
    """
    kernel = _classes(ops)
    convolution = kernel.winograd | kernel.pointwise | kernel.stride2 | kernel.direct
    columns = np.where(ops.out_w > 1, _up(ops.out_w, 4), ops.out_w)
    pixels = ops.batch * ops.out_h * columns
    size = ops.kernel_h * ops.kernel_w
    work = np.select(
        [convolution, kernel.depthwise],
        [
            pixels * _up(ops.in_channels // ops.groups, 4) * _up(ops.out_channels, 4) * size,
            pixels * _up(ops.out_channels, 4) * size,
        ],
        0,
    )
    factor = np.select(
        [kernel.pointwise, kernel.depthwise, convolution & (ops.kernel_h >= 7)],
        [cost.factor_1x1.value, cost.depthwise_factor.value, cost.large_kernel_factor.value],
        1.0,
    )
    weight_factor = np.where(kernel.dense_row, cost.dense_factor.value, 1.0)
    traffic = _traffic_mb(ops) + weight_factor * _megabytes(ops.weight_elements)
    time = cost.ms_per_gmac.value * factor * (work / 1e9) + cost.ms_per_mb.value * traffic + cost.launch_ms.value
    if not friendly:
        excess = cost.unfriendly_factor.value - 1.0
        share = np.select([kernel.pointwise, convolution | kernel.depthwise], [cost.unfriendly_share_1x1.value, 1.0], 0)
        time = time * (1.0 + excess * share)
    return np.where(ops.kind == FREE, 0.0, time)


def roofline_time_ms(ops: OpShapes, cost: RooflineCost) -> Floats:
    """A processor whose kernels are not known: one rate per family of operators, plus traffic, plus a launch."""
    kernel = _classes(ops)
    pixels = ops.batch * ops.out_h * ops.out_w
    macs = pixels * ops.out_channels * (ops.in_channels // ops.groups) * ops.kernel_h * ops.kernel_w
    plain = kernel.winograd | kernel.stride2 | kernel.direct
    grouped = plain & (ops.groups > 1)
    rate = np.select(
        [kernel.depthwise, grouped, kernel.pointwise, plain],
        [
            cost.depthwise_ms_per_gmac.value,
            cost.grouped_ms_per_gmac.value,
            cost.pointwise_ms_per_gmac.value,
            cost.plain_ms_per_gmac.value,
        ],
        0.0,
    )
    weights = np.where(kernel.dense_row, cost.dense_ms_per_mb.value, cost.ms_per_mb.value)
    window = pixels * ops.in_channels * ops.kernel_h * ops.kernel_w
    unfolded = np.where(plain & ~grouped, _megabytes(window.astype(np.float64)), 0.0)
    time = rate * (macs / 1e9) + cost.ms_per_mb.value * _traffic_mb(ops) + weights * _megabytes(ops.weight_elements)
    spilled = np.maximum(_traffic_mb(ops) - SPILL_ABOVE_MB, 0.0)
    time = time + cost.unfold_ms_per_mb.value * unfolded + cost.spill_ms_per_mb.value * spilled
    return np.where(ops.kind == FREE, 0.0, time + cost.launch_ms.value)


def time_ms(ops: OpShapes, cost: Cost, *, friendly: bool = True) -> Floats:
    """Time of each operator by whichever equation the processor has."""
    if isinstance(cost, CpuCost):
        return cpu_time_ms(ops, cost)
    if isinstance(cost, GpuCost):
        return gpu_time_ms(ops, cost, friendly=friendly)
    return roofline_time_ms(ops, cost)
