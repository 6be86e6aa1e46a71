"""`cost_model`, `frames` and `segments` for one plan after another, compiled by numba.

The same operations in the same order as in numpy, so that every bit is the same: sums run in position order, nothing is
reassociated (no `fastmath`), and only terms that are exactly 0 are left out. Data, work, time and frames are walked
through apart, since no earlier one depends on a later one. Arrays are taken out of the tuples before the loops: inside,
each access would count references. Only `accelerate` imports this file; without numba it cannot be imported.

The batch is on the first axis here, so that what a plan reads lies together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from hetrl.device_bridge.surrogate.flat import Flat

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_CHUNK = 128  # plans whose notes stay in the processor's cache


class Batch(NamedTuple):
    """`cost_model.Schedules` with the batch on the first axis."""

    option: Ints
    start: Ints
    end: Ints
    memory: Ints
    duty: Floats
    queue_window: Ints
    slice_ms: Floats
    overlap: Bools


class Notes(NamedTuple):
    """What one part of the walk notes for the next, (B, n) each; `busy_ms` (B, P), `home_ms` (B, outputs)."""

    moved_ms: Floats
    work_ms: Floats
    tail_ms: Floats
    duration_ms: Floats
    slices: Floats
    drained: Bools
    busy_ms: Floats
    home_ms: Floats


class Sums(NamedTuple):
    """What is asked for, (B,) each, `segment_ms` (B, n); the drop rate is NaN without a UI.

    `contended_ms` is work on all cores of a machine at once.
    """

    latency_ms: Floats
    frame_drop_rate: Floats
    peak_memory_mb: Floats
    energy_mj: Floats
    segment_ms: Floats
    contended_ms: Floats


@njit(cache=True, error_model="numpy")
def evaluate_many(c: Flat, batch: Batch, slack_ms: float, sums: Sums) -> bool:
    """Fill `sums`; `slack_ms` is how long a frame may wait, NaN without a UI. False if an index is out of range."""
    size, n = batch.option.shape
    chunk = min(size, _CHUNK)
    notes = Notes(
        np.empty((chunk, n)),
        np.empty((chunk, n)),
        np.empty((chunk, n)),
        np.empty((chunk, n)),
        np.empty((chunk, n)),
        np.empty((chunk, n), np.bool_),
        np.empty((chunk, len(c.draws))),
        np.empty((chunk, len(c.outputs))),
    )
    for a in range(0, size, _CHUNK):
        z = min(size, a + _CHUNK)
        plans = Batch(
            batch.option[a:z],
            batch.start[a:z],
            batch.end[a:z],
            batch.memory[a:z],
            batch.duty[a:z],
            batch.queue_window[a:z],
            batch.slice_ms[a:z],
            batch.overlap[a:z],
        )
        into = Sums(
            sums.latency_ms[a:z],
            sums.frame_drop_rate[a:z],
            sums.peak_memory_mb[a:z],
            sums.energy_mj[a:z],
            sums.segment_ms[a:z],
            sums.contended_ms[a:z],
        )
        notes.busy_ms[:] = 0.0
        if not _data(c, plans, notes, into):
            return False
        _work(c, plans, notes, into)
        _time(c, plans, notes, into)
        _frames(plans, notes, slack_ms, into)
    return True


@njit(cache=True, error_model="numpy")
def segment_many(codes: Ints, option: Ints, start: Ints, end: Ints) -> None:
    """Fill (B, n) each from (n, B) codes; see `segments`."""
    n, size = codes.shape
    for b in range(size):
        begin = 0
        for k in range(n):
            if codes[k, b] != 0:
                for earlier in range(begin, k):
                    end[b, earlier] = k - 1
                begin = k
            option[b, k], start[b, k] = codes[begin, b] - 1, begin
        for earlier in range(begin, n):
            end[b, earlier] = n - 1


@njit(cache=True, error_model="numpy")
def _data(c, batch, notes, sums):  # type: ignore[no-untyped-def]
    """Where tensors are: the time to bring them there and to share them, and the memory that they take.

    False where the tables have no such option, memory type or chain; nothing else checks that.
    """
    types, _, options, depth, _ = c.time_ms.shape
    option_of, start_of, end_of, memory_of = batch.option, batch.start, batch.end, batch.memory
    read_at, read, write_at, write, die_at, dies = c.read_at, c.read, c.write_at, c.write, c.die_at, c.dies
    conversion, home_of, tensor_mb, weights_mb = c.conversion_ms, c.home, c.tensor_mb, c.weights_mb
    split, chained, branched, first_made, made_at = c.split, c.chained, c.branched, c.first_made, c.made_at
    shared, share_rate, share_fixed, host_in, host_out = c.shared, c.share_rate, c.share_fixed_ms, c.host_in, c.host_out
    leaves, inputs, outputs, begin_mb, copies = c.leaves, c.inputs, c.outputs, c.begin_mb, c.copies
    moved_ms, tail_ms, home_ms, peak_mb = notes.moved_ms, notes.tail_ms, notes.home_ms, sums.peak_memory_mb
    homes = np.zeros(len(tensor_mb), np.int64)
    owner = np.empty(len(tensor_mb), np.int64)  # the segment whose host part `had` so much of each tensor
    had = np.empty(len(tensor_mb))
    size, n = option_of.shape
    for b in range(size):
        for tensor in inputs:
            homes[tensor] = 1
        owner[:] = -1
        live, weights = begin_mb, 0.0
        peak = live
        for k in range(n):
            o, m, start = option_of[b, k], memory_of[b, k], start_of[b, k]
            if not (0 <= o < options and 0 <= m < types):
                return False
            home = home_of[o, m]
            bit, moved, parts = np.int64(1) << home, 0.0, split[o]
            offset = 0
            if chained[o]:
                offset = end_of[b, k] - k
            elif branched[o]:
                offset = int(first_made[k] >= start)
            if not 0 <= offset < depth:
                return False
            for r in range(read_at[k], read_at[k + 1]):
                tensor = read[r]
                moved += conversion[tensor, homes[tensor], home]
                if homes[tensor] & bit == 0:
                    live += tensor_mb[tensor]
                    homes[tensor] |= bit
                if parts:
                    need = host_in[r, o, offset] if made_at[tensor] < start else 0.0
                    if shared[tensor]:
                        before = had[tensor] if owner[tensor] == start else 0.0
                        owner[tensor], had[tensor] = start, max(before, need)
                        need = max(0.0, need - before)
                    moved += share_rate[o, m] * need
            if start == k:
                moved += share_fixed[o, m]
            moved_ms[b, k] = moved
            tail_ms[b, k] = share_rate[o, m] * host_out[k, o, offset] if parts and leaves[k] > end_of[b, k] else 0.0
            weights += weights_mb[k, o]
            for w in range(write_at[k], write_at[k + 1]):
                homes[write[w]] = bit
                live += tensor_mb[write[w]]
            peak = max(peak, live)
            for d in range(die_at[k], die_at[k + 1]):
                live -= copies[homes[dies[d]]] * tensor_mb[dies[d]]
        peak_mb[b] = peak + weights
        for i in range(len(outputs)):
            home_ms[b, i] = conversion[outputs[i], homes[outputs[i]], 0]
    return True


@njit(cache=True, error_model="numpy")
def _work(c, batch, notes, sums):  # type: ignore[no-untyped-def]
    """What processors do: how long until the slowest part is done, the GPU's kernels, and work on all cores at once."""
    option_of, start_of, end_of, memory_of = batch.option, batch.start, batch.end, batch.memory
    duty, window_of, slice_of, time_ms, stall_ms = batch.duty, batch.queue_window, batch.slice_ms, c.time_ms, c.stall_ms
    chained, branched, first_made, contention = c.chained, c.branched, c.first_made, c.contention
    draws, sliced, launch_ms, wait_ms, host = c.draws, c.sliced, c.slice_launch_ms, c.queue_wait_ms, c.host
    duration_ms, slices, busy_ms, work_ms = notes.duration_ms, notes.slices, notes.busy_ms, notes.work_ms
    covers, contended_ms, overlap = c.covers, sums.contended_ms, batch.overlap
    kinds = len(covers)
    core_ms, core_sum_ms = np.empty(kinds), np.empty(kinds)
    size, n = option_of.shape
    for b in range(size):
        window, slice_ms = window_of[b], slice_of[b]
        contended, core_sum_ms[:] = 0.0, 0.0
        for k in range(n):
            o, m = option_of[b, k], memory_of[b, k]
            offset = 0
            if chained[o]:
                offset = end_of[b, k] - k
            elif branched[o]:
                offset = int(first_made[k] >= start_of[b, k])
            slowest, kernel_ms, cut, core_ms[:] = 0.0, 0.0, 1.0, 0.0
            for p in range(len(draws)):
                time, cuts = time_ms[m, k, o, offset, p], 1.0
                if time == 0.0:
                    continue
                if sliced[p]:
                    if not np.isinf(time):
                        cuts = max(1.0, np.ceil(time / slice_ms))
                    time = time + ((cuts - 1) * launch_ms[p] + cuts * (wait_ms[p] / window))
                if draws[p]:
                    kernel_ms += time
                    cut = max(cut, cuts)
                busy_ms[b, p] += time
                for kind in range(kinds):
                    if covers[kind, p]:
                        core_ms[kind] += time
                slowest = max(slowest, time / duty[b, p])
            if kinds:
                core_sum_ms += core_ms
                contended += core_ms.min()
            step = slowest * (1.0 + contention[o])
            if stall_ms.size > 0:
                busy_ms[b, host] += stall_ms[m, k, o]
                step = step + stall_ms[m, k, o]
            work_ms[b, k], duration_ms[b, k], slices[b, k] = step, kernel_ms, cut
        contended_ms[b] = core_sum_ms.min() if kinds and overlap[b] else contended


@njit(cache=True, error_model="numpy")
def _time(c, batch, notes, sums):  # type: ignore[no-untyped-def]
    """When positions begin and end, and what that adds up to."""
    option_of, start_of, end_of, overlap = batch.option, batch.start, batch.end, batch.overlap
    moved_ms, work_ms, tail_ms, drained = notes.moved_ms, notes.work_ms, notes.tail_ms, notes.drained
    busy_ms, home_ms, segment_ms = notes.busy_ms, notes.home_ms, sums.segment_ms
    latency_ms, energy_mj, feeds_queue, split = sums.latency_ms, sums.energy_mj, c.feeds_queue, c.split
    idle_w, active_w, side_by_side, host, uses = c.idle_w, c.active_w, c.side_by_side, c.host, c.uses
    independent, read_at, read, write_at, write = c.independent, c.read_at, c.read, c.write_at, c.write
    processors = len(active_w)
    free, ready = np.zeros(processors), np.zeros(len(c.tensor_mb))
    size, n = option_of.shape
    for b in range(size):
        elapsed, began, end, moving = 0.0, 0.0, 0.0, 0.0
        free[:], ready[:], drained[b, 0] = 0.0, 0.0, False
        for k in range(n):
            o, moved, step, tail = option_of[b, k], moved_ms[b, k], work_ms[b, k], tail_ms[b, k]
            begin, drains = elapsed, moved > 0 or not feeds_queue[o]
            if overlap[b]:
                idle = begin = _free_at(uses, free, o)
                for r in range(read_at[k], read_at[k + 1]):
                    begin = max(begin, ready[read[r]])
                if not split[o] and _beside(uses, independent[k], option_of[b], o):
                    step = step * (1.0 + side_by_side)
                drains = feeds_queue[o] and (moved > 0 or begin > idle)
            drained[b, k] = k > 0 and (drained[b, k] or drains)
            end = begin + moved
            end += step
            end += tail
            if overlap[b]:
                for p in range(processors):
                    if uses[p, o]:
                        free[p] = end
                for w in range(write_at[k], write_at[k + 1]):
                    ready[write[w]] = end
            elapsed = max(elapsed, end) if overlap[b] else end
            if k == start_of[b, k]:
                began = begin
            segment_ms[b, k] = end - began if k == end_of[b, k] else 0.0
            if k + 1 < n:
                moving += moved + tail
                drained[b, k + 1] = tail > 0
        last = moved_ms[b, n - 1] + tail_ms[b, n - 1]
        for home in home_ms[b]:
            elapsed += home
            last += home
            end += home
        segment_ms[b, n - 1] = end - began
        energy = idle_w * elapsed + active_w[host] * (moving + last)
        for p in range(processors):
            energy += active_w[p] * busy_ms[b, p]
        latency_ms[b], energy_mj[b] = elapsed, energy


@njit(cache=True, error_model="numpy")
def _free_at(uses, free, o):  # type: ignore[no-untyped-def]
    """When all processors of option `o` have nothing left to do."""
    latest = 0.0
    for p in range(len(free)):
        if uses[p, o]:
            latest = max(latest, free[p])
    return latest


@njit(cache=True, error_model="numpy")
def _beside(uses, independent, option_of, o):  # type: ignore[no-untyped-def]
    """Whether a group that is independent of one under option `o` is on a processor that that one does not use."""
    for other in range(len(option_of)):
        if independent[other]:
            for p in range(len(uses)):
                if uses[p, option_of[other]] and not uses[p, o]:
                    return True
    return False


@njit(cache=True, error_model="numpy")
def _frames(batch, notes, slack_ms, sums):  # type: ignore[no-untyped-def]
    """See `frames.dropped_ms`."""
    duration_ms, slices_of, drained_of, rate = notes.duration_ms, notes.slices, notes.drained, sums.frame_drop_rate
    latency_ms, windows = sums.latency_ms, batch.queue_window
    size, n = batch.option.shape
    starts, pieces, slices = np.zeros(n + 1), np.empty(n), np.empty(n, np.int64)
    for b in range(size):
        longest = 0.0
        for k in range(n):
            starts[k + 1] = starts[k] + duration_ms[b, k]
            pieces[k] = duration_ms[b, k] / slices_of[b, k]
            slices[k] = int(slices_of[b, k]) if pieces[k] > 0 else 0
            longest = max(longest, pieces[k])
        dropped, run, window = 0.0, 0, windows[b]
        if not (min(window * longest, starts[n]) > slack_ms and np.isfinite(starts[n])):
            run = n  # no frame can wait too long, or the plan is impossible
        while run < n:  # positions that are queued behind each other
            after = run + 1
            while after < n and not drained_of[b, after]:
                after += 1
            last, ahead = run, window  # what is `window` slices behind: slice `ahead` of position `last`
            for k in range(run, after):
                piece = pieces[k]
                for j in range(slices[k]):
                    while last < after and ahead >= slices[last]:
                        ahead -= slices[last]
                        last += 1
                    until = starts[last] + ahead * pieces[last] if last < after else starts[after]
                    late = until - (starts[k] + j * piece) - slack_ms
                    dropped += min(max(late, 0.0), piece)
                    ahead += 1
            run = after
        rate[b] = np.nan
        if not np.isnan(slack_ms):
            rate[b] = min(1.0, dropped / latency_ms[b]) if latency_ms[b] > 0 else 0.0
