"""The surrogate's answer for many schedules at once.

Groups run one after the other, as MACE runs them; only the parts of a split run side by side. In a schedule that
overlaps, a group starts as soon as its operands and its processors are free, in the schedule's order: independent
branches on different processors run side by side. For each position

    convert   operands that are not where the placement reads them
    share     a split's host part maps, converts and waits for its piece of the operands (once per segment: sync)
    work      max over processors of busy/cap, times 1 + contention where several work
    tail      what the host's part made goes back to the accelerator's memory, for outputs that leave the segment

There, groups that are placed on different processors and do not depend on each other count as running side by side:
the link's contention slows them down, whether they meet in time or not. The host's part in moving data is not charged
to it, and memory is counted in the schedule's order.

Branches of a segment (`plan.Axis.BRANCHES`) start from host memory and are joined there. Their accelerators are started
and waited for one by one, and their operands and results cross at the rate of the slowest of their links.

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
from hetrl.device_bridge.spec import GpuCost, Link
from hetrl.device_bridge.surrogate.flat import Flat, flat
from hetrl.device_bridge.surrogate.frames import Kernels, dropped_ms
from hetrl.device_bridge.surrogate.op_time import BYTES_PER_ELEMENT
from hetrl.device_bridge.surrogate.shared_cores import Cores, drop_rate
from hetrl.device_bridge.surrogate.tables import MELEMS, MEMORIES, Option, Tables, link_of, made_inside
from hetrl.plan import Axis, Memory

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
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
    :param overlap: (B,) whether independent groups run side by side.
    """

    option: Ints
    start: Ints
    end: Ints
    memory: Ints
    duty: Floats
    queue_window: Ints
    slice_ms: Floats
    overlap: Bools


@dataclass(frozen=True)
class Steps:
    """Per position and schedule (n, B): where the time went."""

    begin_ms: Floats
    transfer_ms: Floats
    work_ms: Floats
    end_ms: Floats


@dataclass(frozen=True)
class Answers:
    """One entry per schedule; `busy_ms` is (P, B). `frame_drop_rate` is NaN without a UI.

    :param contended_ms: work on all cores of a machine at once, 0 on a phone.
    """

    latency_ms: Floats
    frame_drop_rate: Floats
    peak_memory_mb: Floats
    energy_mj: Floats
    busy_ms: Floats
    contended_ms: Floats
    steps: Steps


class CostModel:
    """Evaluates schedules of one workload on one engine set.

    `home_of` (P, M) numbers the home of a processor's tensors; `contention` (O,) is each option's slow-down, and
    `side_by_side` that of overlapping groups; `uses` (P, O) says which processors an option occupies.
    """

    def __init__(self, tables: Tables, idle_w: float) -> None:
        self.tables = tables
        self.idle_w = idle_w
        processors = tables.engine.processors
        self.host = tables.engine.host
        self.costs = [p.cost for p in processors]
        self.draws = np.array([p.unit == "gpu" for p in processors])  # the screen too; no other makes it wait
        self.active_w = [p.active_w.value for p in processors]
        options = tables.options
        self.split = np.array([o.split for o in options])
        self.chained = np.array([o.axis is Axis.HEIGHT for o in options])
        self.branched = np.array([o.axis is Axis.BRANCHES for o in options])
        # The processor whose memory an option's tensors live in: the accelerator of a split, the host of branches.
        self.owner = np.array([o.processors[-1 if o.axis is Axis.BRANCHES else 0] for o in options])
        self.cores = Cores.of(tables.engine, options)
        self.home_of = np.zeros((len(processors), len(MEMORIES)), dtype=np.int64)
        accelerators = [p for p in range(len(processors)) if p != self.host]
        for rank, p in enumerate(accelerators):
            self.home_of[p] = 1 + len(MEMORIES) * rank + np.arange(len(MEMORIES))
        self._homes = 1 + len(MEMORIES) * len(accelerators)
        self.uses = np.array(
            [[any(p.shares_cores(processors[q]) for q in o.processors) for o in options] for p in processors]
        )
        self.side_by_side = max((link.contention.value for link in tables.engine.links), default=0.0)
        self.contention = np.array(
            [max((link.contention.value for link in self._links(o)), default=0.0) for o in options]
        )
        self.feeds_queue = np.array([any(self.draws[p] for p in o.processors) for o in options])

        work = tables.workload
        self.leaves = [max(work.last_use[t] for t in item.writes) for item in work.items]
        self.dying = [
            list({t for t in (*item.writes, *(r.tensor for r in item.reads)) if work.last_use[t] == k})
            for k, item in enumerate(work.items)
        ]
        self.tensor_mb = np.array(work.elements) * BYTES_PER_ELEMENT / 1e6
        self.begin_mb = sum(self.tensor_mb[t] for t in work.inputs)

    @cached_property
    def flat(self) -> Flat:
        """All of this for compiled code."""
        return flat(self)

    def _links(self, option: Option) -> list[Link]:
        """Links between a split's accelerators and their host; none of a single processor's."""
        return [link_of(self.tables.engine, p) for p in option.processors[:-1]]

    @cached_property
    def _move(self) -> tuple[Floats, Floats]:
        """(homes, homes) constant ms and ms per 1e6 elements of moving a tensor from one home to another."""
        fixed = np.full((self._homes, self._homes), np.inf)
        rate = np.full((self._homes, self._homes), np.inf)
        np.fill_diagonal(fixed, 0.0)
        np.fill_diagonal(rate, 0.0)
        for p in range(len(self.costs)):
            if p == self.host:
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
        return fixed * self.tables.transfer_factor, rate * self.tables.transfer_factor

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
            for link in self._links(option):
                fixed[o] += link.map_ms.value + link.sync_ms.value
                for m, memory in enumerate(MEMORIES):
                    image = link.image_ms_per_melem.value if memory is Memory.IMAGE else 0.0
                    rate[o, m] = max(rate[o, m], link.map_ms_per_melem.value + image)
        return fixed * self.tables.transfer_factor, rate * self.tables.transfer_factor

    def kernel_ms(self, processor: int, busy: Floats, window: Ints, slice_ms: Floats) -> tuple[Floats, Floats]:
        """Busy time with slicing and queue waits added, and the number of slices of each kernel.

        Each further slice costs a launch to a busy queue; each window of kernels costs a wait for an empty one.
        """
        cost = self.costs[processor]
        if not isinstance(cost, GpuCost):
            return busy, np.ones_like(busy)
        slices = np.maximum(1.0, np.ceil(np.where(np.isfinite(busy), busy, 0.0) / slice_ms))
        overhead = (slices - 1) * cost.slice_launch_ms.value + slices * (cost.queue_wait_ms.value / window)
        return np.where(busy > 0, busy + overhead, 0.0), slices

    def evaluate(self, batch: Schedules, ui: Ui | None) -> Answers:
        """Evaluate all schedules. Impossible placements come out as inf."""
        walk = _Walk(self, batch)
        for k in range(len(self.tables.workload.items)):
            walk.take(k)
        walk.return_outputs()
        elapsed, size = walk.elapsed, len(walk.elapsed)
        # The host does the moving.
        energy = self.idle_w * elapsed + self.active_w[self.host] * np.cumsum(walk.transfer, axis=0)[-1]
        for p, watts in enumerate(self.active_w):
            energy += watts * walk.busy[p]
        contended = walk.contended_ms()
        drop = np.full(size, np.nan)
        if ui is not None and self.on_machine:
            drop = self.machine_drop_rate(batch, contended, elapsed, ui)
        elif ui is not None:
            dropped = dropped_ms(walk.kernels, batch.queue_window, ui.slack_ms)
            drop = np.minimum(1.0, np.divide(dropped, elapsed, out=np.zeros(size), where=elapsed > 0))
        steps = Steps(walk.began, walk.transfer, walk.worked, walk.ended)
        return Answers(elapsed, drop, walk.peak_mb + walk.weights_mb, energy, walk.busy, contended, steps)

    @property
    def on_machine(self) -> bool:
        """Whether the user interface draws on the CPU, as on machines, and not on the GPU."""
        return self.tables.engine.on_machine

    def machine_drop_rate(self, batch: Schedules, contended_ms: Floats, latency_ms: Floats, ui: Ui) -> Floats:
        """(B,) see `shared_cores`."""
        return drop_rate(contended_ms, latency_ms, self.cores.runs(batch), ui)


class _Walk:
    """The state of a batch as it goes through the positions."""

    def __init__(self, model: CostModel, batch: Schedules) -> None:
        self._model, self._batch = model, batch
        self._tables, self._work = model.tables, model.tables.workload
        n, size = batch.option.shape
        self._mb = model.tensor_mb
        self._homes = np.zeros((len(self._work.elements), size), dtype=np.int64)
        self._homes[list(self._work.inputs)] = 1 << HOST_HOME
        self._shared: dict[int, tuple[Ints, Floats]] = {}  # tensor -> (segment, elements) a host part already has
        self._live_mb = np.full(size, model.begin_mb, dtype=np.float64)
        self.peak_mb = self._live_mb.copy()
        self.weights_mb = np.zeros(size)
        self.elapsed = np.zeros(size)
        self.busy = np.zeros((len(model.tables.engine.processors), size))
        self._core_ms = np.zeros((len(model.cores.covers), size))  # work by kind of core
        self._contended = np.zeros(size)
        self.kernels = Kernels.empty(n, size)
        self.began, self.transfer, self.worked, self.ended = (np.zeros((n, size)) for _ in range(4))
        self._overlaps = bool(batch.overlap.any())
        self._free = np.zeros_like(self.busy)  # when each processor has nothing left to do
        if self._overlaps:
            self._ready = np.zeros((len(self._work.elements), size))
            self._beside = self._side_by_side_groups()

    def take(self, k: int) -> None:
        """One position: operands, work, results."""
        batch, model, item = self._batch, self._model, self._work.items[k]
        option, memory = batch.option[k], batch.memory[k]
        offset = np.where(model.chained[option], batch.end[k] - k, 0)
        if model.branched.any():
            offset = np.where(model.branched[option], made_inside(self._work, k, batch.start[k]), offset)
        home = model.home_of[model.owner[option], memory]
        moved = self._operands(k, option, offset, home)
        step = self._processors(k, option, offset)
        leaves = model.leaves[k] > batch.end[k]
        rate = model.share_rates[1][option, memory]
        tail = np.where(model.split[option] & leaves, rate * self._tables.host_out[k, option, offset], 0.0)
        drained = (moved > 0) | ~model.feeds_queue[option]
        begin = self.elapsed
        if self._overlaps:
            begin, step, drained = self._side_by_side(k, moved, step, drained)
        if k:
            self.kernels.stops_queue(k, drained)
        if k + 1 < len(self._work.items):
            self.kernels.stops_queue(k + 1, tail > 0)
        end = begin + moved
        end += step
        end += tail
        if self._overlaps:
            self._free = np.where(model.uses[:, option], end, self._free)
            self._ready[list(item.writes)] = end
        self.elapsed = np.where(batch.overlap, np.maximum(self.elapsed, end), end) if self._overlaps else end
        self.began[k], self.transfer[k], self.worked[k], self.ended[k] = begin, moved + tail, step, end
        self.weights_mb += self._tables.weights_mb[k, option]
        for tensor in item.writes:
            self._homes[tensor] = 1 << home
            self._live_mb += self._mb[tensor]
        self.peak_mb = np.maximum(self.peak_mb, self._live_mb)
        for tensor in model.dying[k]:
            self._live_mb -= np.bitwise_count(self._homes[tensor]) * self._mb[tensor]

    def _side_by_side_groups(self) -> Bools:
        """(n, B) which groups have an independent one on a processor that they do not use."""
        own = self._model.uses[:, self._batch.option]  # (P, n, B)
        apart = self._work.independent.astype(np.float32)
        beside = np.zeros(own.shape[1:], dtype=np.bool_)
        for there in own:
            beside |= ~there & (np.tensordot(apart, there.astype(np.float32), axes=1) > 0)
        return beside

    def _side_by_side(self, k: int, moved: Floats, step: Floats, drained: Bools) -> tuple[Floats, Floats, Bools]:
        """When a position begins, how long it works, and whether the accelerator's queue runs empty before it."""
        batch, model, option = self._batch, self._model, self._batch.option[k]
        idle = np.where(model.uses[:, option], self._free, 0.0).max(axis=0)
        begin = idle.copy()
        for read in self._work.items[k].reads:
            begin = np.maximum(begin, self._ready[read.tensor])
        slowed = np.where(self._beside[k] & ~model.split[option], step * (1.0 + model.side_by_side), step)
        return (
            np.where(batch.overlap, begin, self.elapsed),
            np.where(batch.overlap, slowed, step),
            np.where(batch.overlap, model.feeds_queue[option] & ((moved > 0) | (begin > idle)), drained),
        )

    def _operands(self, k: int, option: Ints, offset: Ints, home: Ints) -> Floats:
        """Time to bring operands to where they are read, and to share them with a split's host part."""
        batch, model = self._batch, self._model
        fixed, rate = (a[option, batch.memory[k]] for a in model.share_rates)
        split = model.split[option]
        any_split = bool(split.any())
        moved = np.zeros(len(self.elapsed))
        for slot, read in enumerate(self._work.items[k].reads):
            tensor = read.tensor
            moved += model.conversion_ms[tensor, self._homes[tensor], home]
            self._live_mb += ((self._homes[tensor] >> home) & 1 == 0) * self._mb[tensor]
            self._homes[tensor] |= 1 << home
            if any_split:
                outside = split & (self._work.made_at[tensor] < batch.start[k])
                need = np.where(outside, self._tables.host_in[k][slot][option, offset], 0.0)
                if len(self._work.readers[tensor]) > 1:
                    need = _not_yet_shared(self._shared, tensor, batch.start[k], need)
                moved += rate * need
        return moved + np.where(batch.start[k] == k, fixed, 0.0)

    def _processors(self, k: int, option: Ints, offset: Ints) -> Floats:
        """Time until the slowest part is done."""
        batch, model = self._batch, self._model
        slowest = np.zeros(len(self.elapsed))
        core_ms = np.zeros_like(self._core_ms)
        for p in range(len(self.busy)):
            time = self._tables.time_ms[batch.memory[k], k, option, offset, p]
            time, slices = model.kernel_ms(p, time, batch.queue_window, batch.slice_ms)
            if model.draws[p]:
                self.kernels.add(k, time, slices)
            self.busy[p] += time
            core_ms[model.cores.covers[:, p]] += time
            slowest = np.maximum(slowest, time / batch.duty[p])
        if len(core_ms):
            self._core_ms += core_ms
            self._contended += core_ms.min(axis=0)
        step = slowest * (1.0 + model.contention[option])
        if self._tables.stall_ms is not None:
            stall = self._tables.stall_ms[batch.memory[k], k, option, 0]
            self.busy[model.host] += stall  # the CPU does what is suspended
            step = step + stall
        return step

    def contended_ms(self) -> Floats:
        """(B,) work on all cores at once; independent groups that overlap count as much as they can."""
        if not len(self._core_ms):
            return self._contended
        return np.where(self._batch.overlap, self._core_ms.min(axis=0), self._contended)

    def return_outputs(self) -> None:
        """The graph's outputs end in host memory."""
        for tensor in self._work.outputs:
            last = self._model.conversion_ms[tensor, self._homes[tensor], HOST_HOME]
            self.elapsed += last
            self.transfer[-1] += last
            self.ended[-1] += last


def _not_yet_shared(shared: dict[int, tuple[Ints, Floats]], tensor: int, segment: Ints, need: Floats) -> Floats:
    """What of `need` another group of the same segment has not shared before."""
    if tensor not in shared:
        shared[tensor] = (segment.copy(), need.copy())
        return need
    owner, had = shared[tensor]
    had = np.where(owner == segment, had, 0.0)
    shared[tensor] = (segment.copy(), np.maximum(had, need))
    return np.maximum(0.0, need - had)
