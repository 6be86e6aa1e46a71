"""The surrogate's answer for many schedules at once.

Groups run one after the other, as MACE runs them; only the parts of a split run side by side. For each position

    convert   operands that are not where the placement reads them
    share     a split's host part maps, converts and waits for its piece of the operands (once per segment: sync)
    work      max over processors of busy/cap, times 1 + contention where several work
    tail      what the host's part made goes back to the accelerator's memory, for outputs that leave the segment

A tensor's home is host memory or an accelerator's memory of one type; copies stay valid. All arrays have the batch
on their last axis, so that one position's work is a few contiguous vector operations; sums run in position order,
so that a batch gives each of its members exactly what it would get alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hetrl.condition import Ui
from hetrl.device_bridge.spec import GpuCost
from hetrl.device_bridge.surrogate.frames import Kernels, dropped_ms
from hetrl.device_bridge.surrogate.op_time import BYTES_PER_ELEMENT
from hetrl.device_bridge.surrogate.tables import MELEMS, MEMORIES, Tables, link_of
from hetrl.plan import Axis, Memory

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
HOST_HOME = 0


@dataclass(frozen=True)
class Schedules:
    """A batch of schedules of one workload; n positions, B schedules, P processors.

    :param option: (n, B) index into `Tables.options`.
    :param start: (n, B) first position of the segment that the position is in; `end` (n, B) its last.
    :param memory: (n, B) index into `MEMORIES`, for accelerators.
    :param duty: (P, B) cap of each processor, in (0, 1].
    :param queue_window: (B,) kernels that may wait in the accelerator's queue.
    :param slice_ms: (B,) longest kernel, inf where kernels are not sliced.
    """

    option: Ints
    start: Ints
    end: Ints
    memory: Ints
    duty: Floats
    queue_window: Ints
    slice_ms: Floats


@dataclass(frozen=True)
class Steps:
    """Per position and schedule (n, B): where the time went."""

    transfer_ms: Floats
    work_ms: Floats
    end_ms: Floats


@dataclass(frozen=True)
class Answers:
    """One entry per schedule; `busy_ms` is (P, B). `frame_drop_rate` is NaN without a UI."""

    latency_ms: Floats
    frame_drop_rate: Floats
    peak_memory_mb: Floats
    energy_mj: Floats
    busy_ms: Floats
    steps: Steps


class CostModel:
    """Evaluates schedules of one workload on one engine set.

    `home_of` (P, M) numbers the home of a processor's tensors; `contention` (O,) is each option's slow-down.
    """

    def __init__(self, tables: Tables, idle_w: float) -> None:
        self.tables = tables
        self._idle_w = idle_w
        processors = tables.engine.processors
        self._host = next(i for i, p in enumerate(processors) if p.unit == "cpu")
        self._cost_of = [p.cost for p in processors]
        self._active_w = [p.active_w.value for p in processors]
        options = tables.options
        self._split = np.array([o.split for o in options])
        self._chained = np.array([o.axis is Axis.HEIGHT for o in options])
        # The processor whose memory an option's tensors live in: the accelerator of a split.
        self._owner = np.array([o.processors[0] for o in options])
        self.home_of = np.zeros((len(processors), len(MEMORIES)), dtype=np.int64)
        accelerators = [p for p in range(len(processors)) if p != self._host]
        for rank, p in enumerate(accelerators):
            self.home_of[p] = 1 + len(MEMORIES) * rank + np.arange(len(MEMORIES))
        self._homes = 1 + len(MEMORIES) * len(accelerators)
        self.contention = np.array([link_of(tables.engine, o.processors[0]).contention.value if o.split else 0.0
                                     for o in options])  # fmt: skip

    @cached_property
    def _move(self) -> tuple[Floats, Floats]:
        """(homes, homes) constant ms and ms per 1e6 elements of moving a tensor from one home to another."""
        fixed = np.full((self._homes, self._homes), np.inf)
        rate = np.full((self._homes, self._homes), np.inf)
        np.fill_diagonal(fixed, 0.0)
        np.fill_diagonal(rate, 0.0)
        for p in range(len(self._cost_of)):
            if p == self._host:
                continue
            link = link_of(self.tables.engine, p)
            for m, memory in enumerate(MEMORIES):
                home = self.home_of[p, m]
                image = link.image_ms_per_melem.value if memory is Memory.IMAGE else 0.0
                fixed[home, HOST_HOME] = link.map_ms.value + link.sync_ms.value
                rate[home, HOST_HOME] = rate[HOST_HOME, home] = link.map_ms_per_melem.value + image
                fixed[HOST_HOME, home] = 0.0
                other = self.home_of[p, 1 - m]
                fixed[home, other], rate[home, other] = 0.0, link.image_ms_per_melem.value
        for a in range(1, self._homes):  # between accelerators: through the host
            for b in range(1, self._homes):
                if np.isinf(fixed[a, b]):
                    fixed[a, b] = fixed[a, HOST_HOME] + fixed[HOST_HOME, b]
                    rate[a, b] = rate[a, HOST_HOME] + rate[HOST_HOME, b]
        return fixed, rate

    @cached_property
    def conversion_ms(self) -> Floats:
        """(tensors, home sets, homes): cheapest way to bring a tensor to a home; a home set is a bit mask."""
        fixed, rate = self._move
        elements = np.array(self.tables.workload.elements) / MELEMS
        direct = fixed[None] + rate[None] * elements[:, None, None]  # (tensors, from, to)
        sets = np.arange(1 << self._homes)
        cheapest = np.full((len(elements), len(sets), self._homes), np.inf)
        for home in range(self._homes):
            member = (sets >> home) & 1 == 1
            cheapest[:, member] = np.minimum(cheapest[:, member], direct[:, home][:, None, :])
        return cheapest

    @cached_property
    def share_rates(self) -> tuple[Floats, Floats]:
        """Per option and memory type: fixed ms of a split segment's start, ms per 1e6 elements shared (O, M)."""
        fixed = np.zeros((len(self.tables.options), len(MEMORIES)))
        rate = np.zeros_like(fixed)
        for o, option in enumerate(self.tables.options):
            if option.split:
                link = link_of(self.tables.engine, option.processors[0])
                fixed[o] = link.map_ms.value + link.sync_ms.value
                for m, memory in enumerate(MEMORIES):
                    image = link.image_ms_per_melem.value if memory is Memory.IMAGE else 0.0
                    rate[o, m] = link.map_ms_per_melem.value + image
        return fixed, rate

    def kernel_ms(self, processor: int, busy: Floats, window: Ints, slice_ms: Floats) -> tuple[Floats, Floats]:
        """Busy time with slicing and queue waits added, and the number of slices of each kernel.

        Each further slice costs a launch to a busy queue; each window of kernels costs a wait for an empty one.
        """
        cost = self._cost_of[processor]
        if not isinstance(cost, GpuCost):
            return busy, np.ones_like(busy)
        slices = np.maximum(1.0, np.ceil(np.where(np.isfinite(busy), busy, 0.0) / slice_ms))
        overhead = (slices - 1) * cost.slice_launch_ms.value + slices * (cost.queue_wait_ms.value / window)
        return np.where(busy > 0, busy + overhead, 0.0), slices

    def evaluate(self, batch: Schedules, ui: Ui | None) -> Answers:
        """Evaluate all schedules. Impossible placements come out as inf."""
        tables, work = self.tables, self.tables.workload
        n, size = batch.option.shape
        fixed_share, share_rate = self.share_rates
        homes = np.zeros((len(work.elements), size), dtype=np.int64)
        homes[list(work.inputs)] = 1 << HOST_HOME
        shared_in: dict[int, tuple[Ints, Floats]] = {}  # tensor -> (segment, elements) that a host part already has
        elapsed = np.zeros(size)
        busy = np.zeros((len(self._cost_of), size))
        live_mb = np.zeros(size)
        for tensor in work.inputs:
            live_mb += self._tensor_mb(tensor)
        peak_mb, weights_mb = live_mb.copy(), np.zeros(size)
        transfer, worked, ended = np.zeros((n, size)), np.zeros((n, size)), np.zeros((n, size))
        kernels = Kernels.empty(n, size)
        for k, item in enumerate(work.items):
            option, memory = batch.option[k], batch.memory[k]
            split = self._split[option]
            offset = np.where(self._chained[option], batch.end[k] - k, 0)
            home = self.home_of[self._owner[option], memory]
            moved = np.zeros(size)
            for slot, read in enumerate(item.reads):
                tensor = read.tensor
                moved += self.conversion_ms[tensor, homes[tensor], home]
                copied = (homes[tensor] >> home) & 1 == 0
                homes[tensor] |= 1 << home
                live_mb += copied * self._tensor_mb(tensor)
                if split.any():
                    need = np.where(
                        split & (work.made_at[tensor] < batch.start[k]), tables.host_in[k][slot][option, offset], 0.0
                    )
                    if len(work.readers[tensor]) > 1:
                        need = _not_yet_shared(shared_in, tensor, batch.start[k], need)
                    moved += share_rate[option, memory] * need
            moved += np.where(batch.start[k] == k, fixed_share[option, memory], 0.0)
            slowest = np.zeros(size)
            for p in range(len(self._cost_of)):
                time = tables.time_ms[memory, k, option, offset, p]
                time, slices = self.kernel_ms(p, time, batch.queue_window, batch.slice_ms)
                if p != self._host:
                    kernels.add(k, time, slices)
                busy[p] += time
                slowest = np.maximum(slowest, time / batch.duty[p])
            step = slowest * (1.0 + self.contention[option])
            leaves = max(work.last_use[t] for t in item.writes) > batch.end[k]
            tail = np.where(split & leaves, share_rate[option, memory] * tables.host_out[k, option, offset], 0.0)
            if k:
                kernels.stops_queue(k, (moved > 0) | (option == self._host))
            if k + 1 < n:
                kernels.stops_queue(k + 1, tail > 0)
            elapsed += moved
            elapsed += step
            elapsed += tail
            transfer[k], worked[k], ended[k] = moved + tail, step, elapsed
            weights_mb += tables.weights_mb[k, option]
            for tensor in item.writes:
                homes[tensor] = 1 << home
                live_mb += self._tensor_mb(tensor)
            peak_mb = np.maximum(peak_mb, live_mb)
            for tensor in {t for t in (*item.writes, *(r.tensor for r in item.reads)) if work.last_use[t] == k}:
                live_mb -= np.bitwise_count(homes[tensor]) * self._tensor_mb(tensor)
        for tensor in work.outputs:
            last = self.conversion_ms[tensor, homes[tensor], np.full(size, HOST_HOME)]
            elapsed += last
            transfer[-1] += last
            ended[-1] += last
        energy = self._idle_w * elapsed + busy.T @ np.array(self._active_w)
        energy = energy + self._active_w[self._host] * transfer.sum(axis=0)  # the host does the moving
        drop = np.full(size, np.nan)
        if ui is not None:
            drop = np.minimum(1.0, dropped_ms(kernels, batch.queue_window, ui.slack_ms) / elapsed)
        return Answers(elapsed, drop, peak_mb + weights_mb, energy, busy, Steps(transfer, worked, ended))

    def _tensor_mb(self, tensor: int) -> float:
        return self.tables.workload.elements[tensor] * BYTES_PER_ELEMENT / 1e6


def _not_yet_shared(
    shared: dict[int, tuple[Ints, Floats]], tensor: int, segment: Ints, need: Floats
) -> Floats:
    """What of `need` another group of the same segment has not shared before."""
    if tensor not in shared:
        shared[tensor] = (segment.copy(), need.copy())
        return need
    owner, had = shared[tensor]
    had = np.where(owner == segment, had, 0.0)
    shared[tensor] = (segment.copy(), np.maximum(had, need))
    return np.maximum(0.0, need - had)
