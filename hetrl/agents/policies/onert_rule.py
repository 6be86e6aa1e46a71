"""onert's HEFT (Samsung/ONE, runtime/onert/core/src/compiler/HEScheduler.cc): one backend for each operator.

Ranks, from the graph's end: mean execution time over the backends that take an operator, times its standard deviation
(where that is positive), plus the largest over its readers of their rank and the mean transfer. By falling rank, and
along each branch, an operator goes to the backend where it ends soonest: after its operands, after their transfers
(which occupy the CPU), in the first gap that is long enough. Along a branch it must be its predecessor's backend, else
the branch is left and the operator waits for its own turn.

The numbers are the source's, "picked experimentally": a transfer that nobody measured takes bytes / 400 us (one way in
the rank, in and out in the schedule); a border costs 1 ms, 2 ms inside a branch; in the parallel executor the CPU, and
transfers, take twice their time. Times are whole microseconds: rank adds a time to a product of times, so its unit
matters. An operator is a fusion group, a backend a processor of the engine set.

Ignores what transfers really cost, contention, and the screen. hetrl lets branches on two backends overlap as the
parallel executor does, but keeps the graph's order on each backend, where onert starts whatever is ready, of the
highest rank: lost is what that reordering gains.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from dataclasses import dataclass, replace

import numpy as np

from hetrl.agents.policies.placing import placed_on, usual_memory
from hetrl.device_bridge.surrogate.chains import position_work
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.op_time import BYTES_PER_ELEMENT
from hetrl.device_bridge.surrogate.schedule import Schedule
from hetrl.device_bridge.surrogate.workload import Workload
from hetrl.plan import DEFAULT_QUEUE_WINDOW

BYTES_PER_US = 400
BORDER_US = 1000
CPU_DELAY = 2  # in the parallel executor


@dataclass(frozen=True)
class Operation:
    """What the scheduler knows of an operator; it is at its place in topological order.

    :param exec_us: time on each backend, None where it is not supported.
    :param reads: (writer, bytes) of each operand; -1 for graph inputs.
    :param readers: operators that read each tensor that it makes, and its bytes.
    :param mergeable: it has at most one predecessor, and nobody else reads its operands.
    """

    exec_us: tuple[int | None, ...]
    reads: tuple[tuple[int, int], ...]
    readers: tuple[tuple[tuple[int, ...], int], ...]
    mergeable: bool


def ranks(operations: tuple[Operation, ...]) -> list[int]:
    """Rank of each operator."""
    rank = [0] * len(operations)
    for index in reversed(range(len(operations))):
        operation = operations[index]
        times = [t for t in operation.exec_us if t is not None]
        mean = sum(times) // len(times)
        deviation = math.isqrt(sum((t - mean) ** 2 for t in times) // len(times))
        backends = len(operation.exec_us)
        longest = 0
        for readers, size in operation.readers:
            transfer = (1 + backends * (backends - 1) * (size // BYTES_PER_US)) // backends
            longest = max([longest, *(rank[reader] + transfer for reader in readers)])
        rank[index] = mean * (deviation or 1) + longest
    return rank


class _Timetable:
    """(end, start) of what a backend does, ascending."""

    def __init__(self) -> None:
        self._taken = [(0, 0)]

    def first_gap(self, after: int, amount: int) -> int:
        """When `amount` microseconds fit in, not before `after`."""
        begin = after
        for end, start in self._taken[bisect_right(self._taken, after, key=lambda slot: slot[0]) :]:
            if start - begin > amount:
                break
            begin = end + 1
        return begin

    def take(self, begin: int, amount: int) -> tuple[int, int]:
        slot = (begin + amount, begin)
        insort(self._taken, slot)
        return slot

    def free(self, slot: tuple[int, int]) -> None:
        self._taken.remove(slot)


class _Scheduler:
    def __init__(self, operations: tuple[Operation, ...], cpu: int) -> None:
        self._operations, self._cpu = operations, cpu
        self._tables = [_Timetable() for _ in operations[0].exec_us]
        self._end_us = [0] * len(operations)
        self.backend = [-1] * len(operations)

    def branch(self, index: int) -> None:
        """Schedule an operator, and those behind it as long as they want the same backend."""
        parent: int | None = None
        while self.backend[index] < 0 and self._assign(index, parent):
            parent = self.backend[index]
            made = self._operations[index].readers
            if len(made) != 1 or not made[0][0]:
                return
            index = made[0][0][0]
            if not self._operations[index].mergeable:
                return

    def _assign(self, index: int, parent: int | None) -> bool:
        tried = [b for b, time in enumerate(self._operations[index].exec_us) if time is not None]
        begins = {b: self._begin(index, b) for b in tried}
        best = min(tried, key=lambda b: begins[b][0] + self._exec_us(index, b))
        if parent is not None and best != parent:
            return False
        begin, transfers = begins[best]
        for ready, amount in transfers:
            self._tables[self._cpu].take(self._tables[self._cpu].first_gap(ready, amount), amount)
        slot = self._tables[best].take(begin, self._exec_us(index, best))
        self._end_us[index], self.backend[index] = slot[0], best
        return True

    def _exec_us(self, index: int, backend: int) -> int:
        time = self._operations[index].exec_us[backend]
        assert time is not None
        return time * CPU_DELAY if backend == self._cpu else time

    def _begin(self, index: int, backend: int) -> tuple[int, list[tuple[int, int]]]:
        """Earliest start on a backend, and the transfers for it: when each may begin, and how long it takes."""
        operation = self._operations[index]
        border = BORDER_US * (2 if operation.mergeable else 1)
        made = [(writer, size) for writer, size in operation.reads if writer >= 0]
        ready = max((self._end_us[writer] for writer, _ in made), default=0)
        transfers = sorted(
            (self._end_us[writer], 2 * size // BYTES_PER_US * CPU_DELAY + border)
            for writer, size in made
            if self.backend[writer] != backend
        )
        cpu, slots = self._tables[self._cpu], []
        for when, amount in transfers:
            slots.append(cpu.take(cpu.first_gap(when, amount), amount))
            ready = max(ready, slots[-1][0])
        begin = self._tables[backend].first_gap(ready, self._exec_us(index, backend))
        for slot in slots:
            cpu.free(slot)
        return begin, transfers


def backends_of(operations: tuple[Operation, ...], cpu: int) -> list[int]:
    """The backend of each operator."""
    rank = ranks(operations)
    scheduler = _Scheduler(operations, cpu)
    for index in sorted(range(len(operations)), key=lambda i: (-rank[i], i)):
        scheduler.branch(index)
    return scheduler.backend


def operations_of(model: CostModel) -> tuple[Operation, ...]:
    """A workload as the scheduler sees it, with the cost model's times."""
    work, engine = model.tables.workload, model.tables.engine
    count = len(engine.processors)
    time = position_work(model, usual_memory(engine), DEFAULT_QUEUE_WINDOW, np.inf, (1.0,) * count)[:, :count, 0]
    operations = []
    for item, times in zip(work.items, time.tolist(), strict=True):
        operations.append(
            Operation(
                exec_us=tuple(round(1000 * ms) if math.isfinite(ms) else None for ms in times),
                reads=tuple((work.made_at[r.tensor], _bytes(work, r.tensor)) for r in item.reads),
                readers=tuple((work.readers[t], _bytes(work, t)) for t in item.writes),
                mergeable=sum(work.made_at[r.tensor] >= 0 for r in item.reads) <= 1
                and all(len(work.readers[r.tensor]) == 1 for r in item.reads),
            )
        )
    return tuple(operations)


def _bytes(work: Workload, tensor: int) -> int:
    return int(work.elements[tensor] * BYTES_PER_ELEMENT)


def onert_schedule(model: CostModel) -> Schedule:
    """The assignment, in the graph's own order, with overlapping branches."""
    return replace(placed_on(backends_of(operations_of(model), model.host), model.tables.engine), overlap=True)
