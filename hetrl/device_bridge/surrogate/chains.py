"""Cost of every operator chain: a run of groups under one height split, which pays for sharing once.

For each first position i, length - 1 = d and height option s: work, share (fixed part and the operands' pieces) and
tail, all in ms. The cost is additive over chains (CoDL, MobiSys'22, equation 2), which planners and the exact
optimum build on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.tables import MEMORIES
from hetrl.plan import Axis, Memory

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ChainCosts:
    """(n, L, S) arrays; `options` (S,) are the height options' numbers. Impossible chains cost inf.

    :param work_ms: busy time of the slowest part, contention of the option not included.
    """

    options: Ints
    work_ms: Floats
    share_ms: Floats
    tail_ms: Floats


def position_work(model: CostModel, memory: Memory, window: int, slice_ms: float, duty: tuple[float, ...]) -> Floats:
    """(n, O, L) time of each position under each option: the slowest processor, caps and kernel overheads included."""
    time = model.tables.time_ms[MEMORIES.index(memory)]
    slowest = np.zeros(time.shape[:-1])
    for p, cap in enumerate(duty):
        busy, _ = model.kernel_ms(p, time[..., p], np.asarray(window), np.asarray(slice_ms))
        slowest = np.maximum(slowest, busy / cap)
    return slowest


def chain_costs(model: CostModel, work: Floats, memory: Memory) -> ChainCosts:
    """Costs of all chains, from `position_work`'s array."""
    tables = model.tables
    options = np.array([i for i, o in enumerate(tables.options) if o.axis is Axis.HEIGHT], dtype=np.int64)
    n, _, depth = work.shape
    fixed, rate = (a[options, MEMORIES.index(memory)] for a in model.share_rates)
    shape = (n, depth, len(options))
    work_ms, share_ms, tail_ms = (np.full(shape, np.inf) for _ in range(3))
    for end in range(n):
        done = np.zeros(len(options))
        back = np.zeros(len(options))
        read: dict[int, Floats] = {}
        for start in range(end, max(-1, end - depth), -1):
            item, offset = tables.workload.items[start], end - start
            done = done + work[start, options, offset]
            if not np.isfinite(done).any():
                break
            for tensor in item.writes:
                read.pop(tensor, None)
            for slot, operand in enumerate(item.reads):
                piece = tables.host_in[start][slot][options, offset]
                read[operand.tensor] = np.maximum(read.get(operand.tensor, 0.0), piece)
            if max(tables.workload.last_use[t] for t in item.writes) > end:
                back = back + rate * tables.host_out[start, options, offset]
            work_ms[start, offset] = done
            share_ms[start, offset] = fixed + rate * sum(read.values())
            tail_ms[start, offset] = back
    return ChainCosts(options, work_ms, share_ms, tail_ms)
