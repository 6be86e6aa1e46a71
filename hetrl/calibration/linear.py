"""Times as linear forms of a phone's numbers: what a fit evaluates thousands of times, without timing parts anew.

The time of a part is a product of its features (work per kernel class, traffic, one launch) with a phone's rates. The
features are probed from `surrogate.op_time` itself, so that there is one definition of them. A schedule is then its
parts' features and what moving data costs; nothing of it is planned or walked again while numbers change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from hetrl.calibration.mace import QUEUE_WAIT_MS, layout_of_rows
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import CpuCost, GpuCost
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.op_time import OpShapes, cpu_time_ms, gpu_time_ms
from hetrl.device_bridge.surrogate.pieces import Timed
from hetrl.device_bridge.surrogate.schedule import Schedule, batch_of
from hetrl.device_bridge.surrogate.tables import Layout, Tables
from hetrl.plan import DEFAULT_QUEUE_WINDOW, Axis, Memory

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """Features of parts, one row each; zero rows where there is no part.

    :param cpu: (r, 5) work by Winograd and GEMM, direct, stride-2 3x3; traffic; launches.
    :param gpu: (r, 6) work by plain, 1x1, large kernels; traffic; dense weights; launches.
    :param excess: (r, 2) how much of the other memory type's excess the GPU part sees: convolutions, 1x1 ones.
    """

    cpu: Floats
    gpu: Floats
    excess: Floats

    def take(self, cpu: Ints, gpu: Ints) -> Parts:
        """Rows by index, -1 for none."""
        on_gpu = (gpu >= 0)[:, None]
        return Parts((cpu >= 0)[:, None] * self.cpu[cpu], on_gpu * self.gpu[gpu], on_gpu * self.excess[gpu])


@dataclass(frozen=True)
class PartTable:
    """All parts of a network's layout, and (n, O, L) row numbers of them, -1 for none."""

    parts: Parts
    cpu_row: Ints
    gpu_row: Ints
    possible: npt.NDArray[np.bool_]

    def whole(self, positions: Ints) -> Parts:
        """Operators alone on the CPU, and alone on the GPU."""
        return self.parts.take(self.cpu_row[positions, 0, 0], self.gpu_row[positions, 1, 0])


@dataclass(frozen=True)
class Walked:
    """A schedule as features: one row per position."""

    parts: Parts
    split: npt.NDArray[np.bool_]
    friendly: bool
    transfer_ms: float
    queue_ms: Floats


@cache
def part_table(model: str) -> PartTable:
    """The parts of a measured network."""
    layout = layout_of_rows(model)
    cpu, gpu = layout.parts
    assert cpu is not None and gpu is not None  # the rows have no operator that the GPU refuses
    on_gpu, excess = _gpu_features(gpu.shapes)
    parts = Parts(_cpu_features(cpu.shapes), on_gpu, excess)
    return PartTable(parts, _rows(cpu, layout), _rows(gpu, layout), layout.possible)


def _rows(part: Timed, layout: Layout) -> Ints:
    index = np.full(layout.host_out.shape, -1, dtype=np.int64)
    index[part.position, part.option, part.offset] = np.arange(len(part.position))
    return index


def _cpu_features(ops: OpShapes) -> Floats:
    def time(gemm: float = 0, direct: float = 0, stride2: float = 0, traffic: float = 0, launch: float = 0) -> Floats:
        rates = (_q(v) for v in (gemm, traffic, launch, direct, stride2, 0))
        return cpu_time_ms(ops, CpuCost(*rates))

    gemm = time(gemm=1)
    columns = [gemm, time(gemm=1, direct=1) - gemm, time(gemm=1, stride2=1) - gemm, time(traffic=1), time(launch=1)]
    return np.stack(columns, axis=1)


def _gpu_features(ops: OpShapes) -> tuple[Floats, Floats]:
    def time(rate: float = 0, one: float = 0, large: float = 0, traffic: float = 0, dense: float = 0) -> Floats:
        return gpu_time_ms(ops, _gpu(rate, one, large, traffic, dense), friendly=True)

    plain, traffic, launch = time(rate=1), time(traffic=1), gpu_time_ms(ops, _gpu(launch=1), friendly=True)
    columns = [plain, time(rate=1, one=1) - plain, time(rate=1, large=1) - plain]
    columns += [traffic, time(traffic=1, dense=1) - traffic, launch]
    heavy = gpu_time_ms(ops, _gpu(launch=1, share_1x1=0), friendly=False) - launch
    both = gpu_time_ms(ops, _gpu(launch=1, share_1x1=1), friendly=False) - launch
    return np.stack(columns, axis=1), np.stack([heavy, both - heavy], axis=1)


def _gpu(
    rate: float = 0, one: float = 0, large: float = 0, traffic: float = 0, dense: float = 0, launch: float = 0,
    share_1x1: float = 0,
) -> GpuCost:  # fmt: skip
    return GpuCost(
        ms_per_gmac=_q(rate), ms_per_mb=_q(traffic), launch_ms=_q(launch), factor_1x1=_q(one),
        large_kernel_factor=_q(large), depthwise_factor=_q(0), dense_factor=_q(dense), friendly_memory=Memory.IMAGE,
        unfriendly_factor=_q(2), unfriendly_share_1x1=_q(share_1x1), slice_launch_ms=_q(0), queue_wait_ms=_q(0),
    )  # fmt: skip


def _q(value: float) -> Quantity:
    return Quantity(value, Source.ASSUMED)


def walked(model: str, cost: CostModel, schedules: Sequence[Schedule], friendly: Memory) -> list[Walked]:
    """The features of schedules of a measured network."""
    n = len(cost.tables.workload.items)
    answers = cost.evaluate(batch_of(schedules, n, len(cost.tables.engine.processors)), ui=None)
    moved = answers.steps.transfer_ms.sum(axis=0)
    return [_walked(model, cost.tables, s, friendly, float(m)) for s, m in zip(schedules, moved, strict=True)]


def _walked(model: str, tables: Tables, schedule: Schedule, friendly: Memory, moved_ms: float) -> Walked:
    table, n = part_table(model), len(tables.workload.items)
    option, offset = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for placed in schedule.segments:
        span = np.arange(placed.start, placed.end + 1)
        option[span] = placed.option
        if tables.options[placed.option].axis is Axis.HEIGHT:
            offset[span] = placed.end - span
    where = (np.arange(n), option, offset)
    gpu_row = table.gpu_row[where]
    return Walked(
        parts=table.parts.take(table.cpu_row[where], gpu_row),
        split=np.array([tables.options[o].split for o in option]),
        friendly=all(placed.memory is friendly for placed in schedule.segments),
        transfer_ms=moved_ms,
        queue_ms=np.where(gpu_row >= 0, QUEUE_WAIT_MS / DEFAULT_QUEUE_WINDOW, 0.0),
    )


@dataclass(frozen=True)
class Rates:
    """A phone's numbers as coefficients of features: `cpu` (5,), `gpu` (6,), and what co-execution adds."""

    cpu: Floats
    gpu: Floats
    unfriendly: float
    share_1x1: float
    contention: float


@dataclass(frozen=True)
class Slope:
    """A latency and its derivatives by the coefficients."""

    latency_ms: float
    cpu: Floats
    gpu: Floats
    unfriendly: float = 0.0
    contention: float = 0.0


def latency_of(schedule: Walked, rates: Rates) -> Slope:
    """Latency of a walked schedule: moving data, and of each position its slowest part."""
    parts = schedule.parts
    alone = parts.gpu @ rates.gpu
    mask = np.zeros(len(alone)) if schedule.friendly else parts.excess @ np.array([1.0, rates.share_1x1])
    slower = 1 + (rates.unfriendly - 1) * mask
    on_cpu, on_gpu = parts.cpu @ rates.cpu, alone * slower + schedule.queue_ms
    by_cpu = on_cpu >= on_gpu
    weight = 1 + rates.contention * schedule.split
    slowest = np.maximum(on_cpu, on_gpu)
    gpu_weight = weight * ~by_cpu
    return Slope(
        latency_ms=float(schedule.transfer_ms + (weight * slowest).sum()),
        cpu=(weight * by_cpu) @ parts.cpu,
        gpu=(gpu_weight * slower) @ parts.gpu,
        unfriendly=float((gpu_weight * alone * mask).sum()),
        contention=float((slowest * schedule.split).sum()),
    )


def ideal_of(model: str, rates: Rates) -> Slope:
    """CoDL's "Ideal": each operator at its best axis and ratio, sharing and contention for nothing."""
    table = part_table(model)
    position, option = np.nonzero(table.possible)
    cpu_row, gpu_row = table.cpu_row[position, option, 0], table.gpu_row[position, option, 0]
    on_cpu = np.where(cpu_row >= 0, (table.parts.cpu @ rates.cpu)[cpu_row], 0.0)
    on_gpu = np.where(gpu_row >= 0, (table.parts.gpu @ rates.gpu)[gpu_row], 0.0)
    slowest = np.maximum(on_cpu, on_gpu)
    order = np.lexsort((slowest, position))
    best = order[np.searchsorted(position[order], np.arange(len(table.possible)))]
    by_cpu = (on_cpu >= on_gpu)[best]
    return Slope(
        latency_ms=float(slowest[best].sum()),
        cpu=table.parts.cpu[cpu_row[best][by_cpu]].sum(axis=0),
        gpu=table.parts.gpu[gpu_row[best][~by_cpu]].sum(axis=0),
    )
