"""Plans whose independent branches run side by side, as a scheduling problem: the numbers that its solvers share.

Every fusion group is a segment of its own: whole on one processor, or split over a link's two, which it occupies for
all of its time, with what sharing costs. A way is a set of processors that a group can occupy and the processor in
whose memory its results lie; of all splits of one link only the cheapest counts for each group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hetrl.agents.segment_costs import alone_ms, work_ms
from hetrl.device_bridge.surrogate.cost_model import HOST_HOME, CostModel
from hetrl.device_bridge.surrogate.schedule import Placed
from hetrl.device_bridge.surrogate.tables import MEMORIES
from hetrl.device_bridge.surrogate.workload import Workload
from hetrl.plan import DEFAULT_QUEUE_WINDOW, Memory

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SideBySide:
    """One workload in one memory type; n positions, W ways, P processors. Way p < P is processor p alone.

    :param work_ms: (n, W) time of each group, sharing included, inf where it cannot run; `option` what it then has.
    :param owner: (W,) the processor in whose memory a way reads and writes; `uses` (W, P) those that it occupies.
    :param move_ms: (tensors, P, P) time to bring a tensor from one processor's memory to another's.
    :param host: the processor whose memory is the host's.
    :param contention: by how much whole groups side by side slow each other down.
    """

    workload: Workload
    memory: Memory
    work_ms: Floats
    option: Ints
    owner: Ints
    uses: Bools
    move_ms: Floats
    host: int
    contention: float

    @staticmethod
    def of(model: CostModel, memory: Memory, possible: Bools) -> SideBySide:
        """:param possible: (n, O) which options a plan may choose for which group."""
        processors = len(model.tables.engine.processors)
        work = work_ms(model, memory, DEFAULT_QUEUE_WINDOW, None, (1.0,) * processors)
        alone = alone_ms(model, memory, work, possible)
        ways = {p: np.array([p]) for p in range(processors)}
        for owner in dict.fromkeys(model.owner[model.split].tolist()):
            ways[processors + owner] = np.flatnonzero(model.split & ~model.branched & (model.owner == owner))
        options = [found[alone[:, found].argmin(axis=1)] for found in ways.values() if len(found)]
        option = np.stack(options, axis=1)
        home = model.home_of[:, MEMORIES.index(memory)]
        return SideBySide(
            workload=model.tables.workload,
            memory=memory,
            work_ms=np.take_along_axis(alone, option, axis=1),
            option=option,
            owner=model.owner[option[0]],
            uses=model.uses[:, option[0]].T,
            move_ms=model.conversion_ms[:, (1 << home)[:, None], home],
            host=int(np.flatnonzero(home == HOST_HOME)[0]),
            contention=model.side_by_side,
        )

    @property
    def processors(self) -> int:
        return int(self.uses.shape[1])

    @cached_property
    def least_ms(self) -> Floats:
        """(n,) time of each group where it is fastest."""
        least: Floats = self.work_ms.min(axis=1)
        return least

    @cached_property
    def after(self) -> Bools:
        """(n, n) whether the second position depends on the first one's results; not on itself."""
        n = len(self.workload.items)
        after = np.zeros((n, n), dtype=np.bool_)
        for k in range(n):
            for made in self.sources(k):
                after[:, k] |= after[:, made]
                after[made, k] = True
        return after

    @cached_property
    def blocks(self) -> list[range]:
        """Positions between two points, of which all after depend on all before."""
        n = len(self.after)
        cuts = [k for k in range(n + 1) if self.after[:k, k:].all()]
        return [range(start, end) for start, end in pairwise(cuts)]

    @cached_property
    def _last_use(self) -> list[int]:
        """The last position that reads each tensor, or makes it; -1 of an input that nobody reads."""
        work = self.workload
        return [readers[-1] if readers else made for readers, made in zip(work.readers, work.made_at, strict=True)]

    def live(self, k: int) -> tuple[int, ...]:
        """Tensors made before a position that it or a later one reads."""
        made = self.workload.made_at
        inputs = self.workload.inputs
        return tuple(
            t for t, last in enumerate(self._last_use) if made[t] < k <= last and (made[t] >= 0 or t in inputs)
        )

    @cached_property
    def returned(self) -> list[list[int]]:
        """Outputs of the graph that each position is the last to use; to bring them home later is never cheaper."""
        outputs = [(self._last_use[tensor], tensor) for tensor in self.workload.outputs]
        return [[tensor for last, tensor in outputs if last == k] for k in range(len(self.work_ms))]

    @cached_property
    def way_ms(self) -> Floats:
        """(tensors, 2^P, P) time to bring a tensor to a processor from the nearest of a set of them, a bit mask."""
        sets = np.arange(1 << self.processors)
        way = np.full((len(self.move_ms), len(sets), self.processors), np.inf)
        for p in range(self.processors):
            there = (sets >> p) & 1 == 1
            way[:, there] = np.minimum(way[:, there], self.move_ms[:, None, p])
        return way

    @cached_property
    def regret_ms(self) -> Floats:
        """(tensors, 2^P, 2^P) what a tensor in the first set of homes can cost more than one in the second.

        Whatever follows reads it for the first time at each processor at most once, and both sets grow alike.
        """
        way = self.way_ms[:, 1:]
        more = np.maximum(0.0, way[:, :, None] - way[:, None, :]).sum(axis=-1)
        return np.pad(more, ((0, 0), (1, 0), (1, 0)))  # no tensor is nowhere

    def host_homes(self, tensors: Sequence[int]) -> Ints:
        """(T,) homes of tensors that lie in host memory."""
        return np.full(len(tensors), 1 << self.host, dtype=np.int64)

    def operands(self, k: int) -> tuple[int, ...]:
        """The tensors that a position reads, each once."""
        return tuple(dict.fromkeys(r.tensor for r in self.workload.items[k].reads))

    def sources(self, k: int) -> list[int]:
        """The positions whose results a position reads."""
        made = (self.workload.made_at[tensor] for tensor in self.operands(k))
        return sorted({position for position in made if position >= 0})

    @cached_property
    def least_move_ms(self) -> Floats:
        """(tensors, P) least time to bring a tensor to a processor from any other."""
        apart = np.where(np.eye(self.processors, dtype=np.bool_), np.inf, self.move_ms).min(axis=1)
        return np.where(np.isfinite(apart), apart, 0.0)

    @cached_property
    def earliest_ms(self) -> Floats:
        """(n, W) lower bound on when a group is done in a way: the longest path to it, each group at its shortest."""
        done = np.zeros_like(self.work_ms)
        for k in range(len(done)):
            ready = np.zeros(self.processors)
            for tensor in self.operands(k):
                made = self.workload.made_at[tensor]
                here = np.where(np.arange(self.processors) == self.host, 0.0, np.inf)
                if made >= 0:
                    here = np.array([done[made, self.owner == p].min() for p in range(self.processors)])
                there = np.where(np.eye(len(here), dtype=np.bool_), np.inf, here).min(axis=1)
                ready = np.maximum(ready, np.minimum(here, there + self.least_move_ms[tensor]))
            done[k] = ready[self.owner] + self.work_ms[k]
        return done

    def critical_path_ms(self) -> float:
        """Lower bound: when the last group is done at the earliest."""
        return float(self.earliest_ms.min(axis=1).max())

    def placed(self, ways: Sequence[int]) -> tuple[Placed, ...]:
        """One placement per group, from its way."""
        return tuple(Placed(k, k, int(self.option[k, way]), self.memory) for k, way in enumerate(ways))
