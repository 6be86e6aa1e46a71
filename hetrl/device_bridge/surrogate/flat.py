"""A cost model as plain arrays, for code that is compiled: no objects, no nested sequences.

Lists per position (reads, writes, tensors that die) become one array and the bounds of each position's part in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.spec import GpuCost
from hetrl.device_bridge.surrogate.op_time import BYTES_PER_ELEMENT

if TYPE_CHECKING:
    from hetrl.device_bridge.surrogate.cost_model import CostModel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Flat(NamedTuple):
    """What a compiled walk reads; n positions, O options, L offsets, P processors, M memory types, T tensors, R reads.

    :param read_at: (n + 1,) where each position's reads begin in `read` (R,), the tensors; so for writes and deaths.
    :param dies: tensors that nobody reads after a position.
    :param first_made: (n,) position that makes a position's first operand, -1 for graph inputs and none.
    :param shared: (T,) whether several positions read a tensor.
    :param leaves: (n,) last position that reads what a position writes.
    :param stall_ms: (M, n, O), or empty where nothing is suspended.
    :param home: (O, M) home of an option's tensors.
    :param copies: (home sets,) homes in a set.
    :param covers: (kinds of cores, P), see `shared_cores.Cores`.
    :param slice_launch_ms: (P,) of processors whose kernels can be `sliced`, 0 of others; so `queue_wait_ms`.
    """

    read_at: Ints
    read: Ints
    write_at: Ints
    write: Ints
    die_at: Ints
    dies: Ints
    first_made: Ints
    made_at: Ints
    shared: Bools
    leaves: Ints
    inputs: Ints
    outputs: Ints
    independent: Bools
    tensor_mb: Floats
    begin_mb: float
    time_ms: Floats
    stall_ms: Floats
    host_in: Floats
    host_out: Floats
    weights_mb: Floats
    conversion_ms: Floats
    share_fixed_ms: Floats
    share_rate: Floats
    home: Ints
    copies: Ints
    split: Bools
    chained: Bools
    branched: Bools
    contention: Floats
    feeds_queue: Bools
    uses: Bools
    covers: Bools
    side_by_side: float
    draws: Bools
    sliced: Bools
    slice_launch_ms: Floats
    queue_wait_ms: Floats
    active_w: Floats
    idle_w: float
    host: int


def flat(model: CostModel) -> Flat:
    """The arrays of a cost model."""
    tables, work = model.tables, model.tables.workload
    read_at, read = _joined([r.tensor for r in item.reads] for item in work.items)
    write_at, write = _joined(item.writes for item in work.items)
    die_at, dies = _joined(model.dying)
    stall, depth = tables.stall_ms, tables.host_out.shape[2]
    host_in = [of_slot for of_position in tables.host_in for of_slot in of_position]
    kernels = [cost if isinstance(cost, GpuCost) else None for cost in model.costs]
    fixed, rate = model.share_rates
    return Flat(
        read_at=read_at,
        read=read,
        write_at=write_at,
        write=write,
        die_at=die_at,
        dies=dies,
        first_made=_ints([work.made_at[item.reads[0].tensor] if item.reads else -1 for item in work.items]),
        made_at=_ints(work.made_at),
        shared=np.array([len(readers) > 1 for readers in work.readers], dtype=np.bool_),
        leaves=_ints(model.leaves),
        inputs=_ints(work.inputs),
        outputs=_ints(work.outputs),
        independent=np.ascontiguousarray(work.independent),
        tensor_mb=np.array(work.elements) * BYTES_PER_ELEMENT / 1e6,
        begin_mb=float(model.begin_mb),
        time_ms=np.ascontiguousarray(tables.time_ms),
        stall_ms=np.zeros((0, 0, 0)) if stall is None else np.ascontiguousarray(stall[..., 0]),
        host_in=np.array(host_in).reshape(len(host_in), len(tables.options), depth),
        host_out=np.ascontiguousarray(tables.host_out),
        weights_mb=np.ascontiguousarray(tables.weights_mb),
        conversion_ms=np.ascontiguousarray(model.conversion_ms),
        share_fixed_ms=np.ascontiguousarray(fixed),
        share_rate=np.ascontiguousarray(rate),
        home=np.ascontiguousarray(model.home_of[model.owner]),
        copies=np.bitwise_count(np.arange(model.conversion_ms.shape[1])).astype(np.int64),
        split=model.split,
        chained=model.chained,
        branched=model.branched,
        contention=np.asarray(model.contention, dtype=np.float64),
        feeds_queue=model.feeds_queue,
        uses=np.ascontiguousarray(model.uses),
        covers=np.ascontiguousarray(model.cores.covers),
        side_by_side=float(model.side_by_side),
        draws=model.draws,
        sliced=np.array([cost is not None for cost in kernels], dtype=np.bool_),
        slice_launch_ms=np.array([cost.slice_launch_ms.value if cost else 0.0 for cost in kernels]),
        queue_wait_ms=np.array([cost.queue_wait_ms.value if cost else 0.0 for cost in kernels]),
        active_w=np.array(model.active_w, dtype=np.float64),
        idle_w=float(model.idle_w),
        host=model.host,
    )


def _ints(values: Sequence[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def _joined(lists: Iterable[Sequence[int]]) -> tuple[Ints, Ints]:
    """Bounds of each list in all of them joined, and these."""
    kept = [list(values) for values in lists]
    bounds = np.cumsum([0, *(len(values) for values in kept)], dtype=np.int64)
    return bounds, _ints([value for values in kept for value in values])
