"""The best plan whose independent branches run side by side: partial plans, of which only those are followed that no
other is sure to match.

Groups are placed in the graph's order. What matters of a partial plan for what follows is a label: when each processor
is free, where live tensors lie and since when, and what it promised. A whole group is slowed down by an independent
one that occupies another processor, wherever in the order that comes; so a label either pays for it, or promises that
there will be none. Where every later group depends on every earlier one, nothing of what follows begins before all
that came is done. So the times of the blocks in between add up, and what one block leaves to the next is where tensors
lie. Where labels are too many nevertheless, only the most hopeful are kept, and what the others lead to at least is in
the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hetrl.agents.side_by_side import Bools, Floats, Ints, SideBySide
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.schedule import Placed
from hetrl.plan import Memory

EFFORT = 32_000  # labels that may be kept in all, each for about a quarter of a millisecond
DRAFTS = 16  # labels per position of a first search, which gives later ones something to beat
WIDEN = 8  # times as many in every further search
TOLERANCE = 1e-9  # of a latency, for sums taken in another order
WORD = 64
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Makespan:
    """The best placements found below the limit, None if there are none; and a proven lower bound."""

    segments: tuple[Placed, ...] | None
    bound_ms: float


def solve_makespan(
    model: CostModel, memory: Memory, possible: Bools, limit_ms: float, effort: int = EFFORT
) -> Makespan:
    """Placements that take less than `limit_ms`, as short as can be found; `bound_ms` is `limit_ms` if there are none.

    :param possible: (n, O) which options a plan may choose for which group.
    :param effort: labels that may be kept in all.
    """
    problem = SideBySide.of(model, memory, possible)
    if problem.critical_path_ms() >= limit_ms:
        return Makespan(None, limit_ms)
    blocks = [_Block(problem, span) for span in problem.blocks]
    most = max(DRAFTS, effort // max(1, sum(len(span) for span in problem.blocks if len(span) > 1)))
    rest_ms = [0.0]  # from the end of each block to the end of all, at least; the last one's first
    for block in reversed(blocks):
        rest_ms.append(rest_ms[-1] + block.least_ms(most))
    labels, bound_ms = blocks[0].begin(problem.host_homes(blocks[0].live_before)), limit_ms
    for block, later_ms in zip(blocks, reversed(rest_ms[:-1]), strict=True):
        labels, lost_ms = block.through(labels, limit_ms - later_ms, most)
        bound_ms = min(bound_ms, lost_ms + later_ms)
    if not labels.size:
        return Makespan(None, bound_ms)
    best = labels.take(np.array([labels.least_ms.argmin()]))
    return Makespan(problem.placed(best.ways[:, 0].tolist()), min(bound_ms, float(best.least_ms[0])))


def least_ms(model: CostModel, memory: Memory, possible: Bools) -> float:
    """Lower bound on all plans whose branches run side by side: the longest path through the graph."""
    return SideBySide.of(model, memory, possible).critical_path_ms()


@dataclass(frozen=True)
class _Labels:
    """B partial plans; T live tensors, P processors. Masks are of a block's groups, in words of 64.

    :param free_ms: (P, B) when each processor has nothing left to do.
    :param ready_ms: (T, B) when each tensor was made; `homes` (T, B) processors where it lies, a bit mask.
    :param back_ms: (B,) what bringing outputs to host memory takes after all the rest.
    :param least_ms: (B,) lower bound on when the block is done, that included; at its end exactly that.
    :param promised: (P, words, B) groups to come that must occupy that processor alone.
    :param spoilt: (P, words, B) groups to come that have an independent one elsewhere if they run there.
    :param ways: (groups so far, B) the way of each.
    """

    free_ms: Floats
    ready_ms: Floats
    homes: Ints
    back_ms: Floats
    least_ms: Floats
    promised: Words
    spoilt: Words
    ways: Ints

    @property
    def size(self) -> int:
        return len(self.least_ms)

    def take(self, which: Ints | Bools) -> _Labels:
        return _Labels(*(values[..., which] for values in vars(self).values()))

    @staticmethod
    def of(pieces: Sequence[_Labels]) -> _Labels:
        columns = zip(*(vars(piece).values() for piece in pieces), strict=True)
        return _Labels(*(np.concatenate(column, axis=-1) for column in columns))


class _Block:
    """Positions between two points that all paths pass, with bounds on what is left of them."""

    def __init__(self, problem: SideBySide, span: range) -> None:
        self._problem, self._span = problem, span
        self._live = [problem.live(k) for k in range(span.start, span.stop + 1)]
        here = slice(span.start, span.stop)
        able, self._weights = np.isfinite(problem.work_ms[here]), _weights(problem.processors)
        each = np.where(able, problem.work_ms[here], 0.0)[:, :, None] * (problem.uses @ self._weights.T)
        load = np.where(able[:, :, None], each, np.inf).min(axis=1)  # (groups, weights)
        self._load_ms = np.zeros((len(span) + 1, len(self._weights)))  # what each group and all later ones do
        self._load_ms[:-1] = load[::-1].cumsum(axis=0)[::-1]
        self._tail_ms = np.zeros(len(span))  # from the end of each group to the end of the block
        for i in reversed(range(len(span))):
            later = np.flatnonzero(problem.after[span.start + i, here])
            path = (problem.least_ms[here][later] + self._tail_ms[later]).max(initial=0.0)
            self._tail_ms[i] = max(path, float(load[later].sum(axis=0).max()))
        independent = problem.workload.independent[here, here]
        self._apart: Bools = np.any(independent, axis=1)
        self._later = _masks(np.triu(independent))  # (groups, words) of independent ones after each
        self._to_come = _masks(np.arange(len(span) + 1)[:, None] <= np.arange(len(span)))

    @property
    def live_before(self) -> tuple[int, ...]:
        return self._live[0]

    def begin(self, homes: Ints) -> _Labels:
        """The label of a beginning at time 0, from (T,) homes of its live tensors."""
        processors = self._problem.processors
        masks = np.zeros((processors, self._later.shape[1], 1), dtype=np.uint64)
        time, ways = np.zeros(1), np.zeros((0, 1), dtype=np.int64)
        free, ready = np.zeros((processors, 1)), np.zeros((len(homes), 1))
        return _Labels(free, ready, homes[:, None], time, time, masks, masks, ways)

    def least_ms(self, most: int) -> float:
        """Lower bound on the block: as if what it reads already lay everywhere."""
        everywhere = np.full(len(self.live_before), (1 << self._problem.processors) - 1, dtype=np.int64)
        labels, lost_ms = self.through(self.begin(everywhere), np.inf, most)
        return float(min(lost_ms, labels.least_ms.min(initial=np.inf)))

    def through(self, labels: _Labels, limit_ms: float, most: int) -> tuple[_Labels, float]:
        """Labels at the end of the block, and a lower bound on what others lead to that are not worse than those.

        Every search is wider than the one before, until one loses nothing or keeps as many as it may. What a label can
        win later by where its tensors lie is bounded by what moving them takes; others are left out.
        """
        labels = self._aligned(labels)
        done, beam = [], DRAFTS
        below_ms, gain_ms = limit_ms, self._problem.regret_ms[list(self._live[-1])].max(axis=(1, 2), initial=0.0).sum()
        while True:
            found, lost_ms = self._search(labels, below_ms, min(beam, most))
            done.append(found)
            below_ms = min(below_ms, (float(found.least_ms.min(initial=np.inf)) + gain_ms) * (1 + TOLERANCE))
            if lost_ms >= below_ms or beam >= most:
                break
            beam *= WIDEN
        together = self._aligned(_Labels.of(done))
        kept, cut_ms = self._undominated(together, len(self._span), most)
        return together.take(kept), min(lost_ms, cut_ms)

    def _aligned(self, labels: _Labels) -> _Labels:
        """Labels at the end of a block as those of a beginning: all is done, and nothing promised."""
        processors, size = self._problem.processors, labels.size
        masks = np.zeros((processors, self._later.shape[1], size), dtype=np.uint64)
        free = np.tile(labels.least_ms, (processors, 1))
        ready = np.tile(labels.least_ms, (len(labels.homes), 1))
        return replace(labels, free_ms=free, ready_ms=ready, back_ms=np.zeros(size), promised=masks, spoilt=masks)

    def _search(self, labels: _Labels, limit_ms: float, beam: int) -> tuple[_Labels, float]:
        """Labels below a limit at the end of the block, and the bound of those that a beam did not hold."""
        bound_ms = np.inf
        for i in range(len(self._span)):
            ways = np.flatnonzero(np.isfinite(self._problem.work_ms[self._span[i]])).tolist()
            next_ones = [self._placed(labels, i, way, alone) for way in ways for alone in self._promises(i, way)]
            labels = _Labels.of([found.take(found.least_ms < limit_ms) for found in next_ones])
            kept, lost_ms = self._undominated(labels, i + 1, beam)
            labels, bound_ms = labels.take(kept), min(bound_ms, lost_ms)
        return replace(labels, least_ms=labels.free_ms.max(axis=0) + labels.back_ms), bound_ms

    def _promises(self, i: int, way: int) -> tuple[bool, ...]:
        slowed = way < self._problem.processors and self._apart[i] and self._problem.contention > 0
        return (False, True) if slowed else (True,)

    def _placed(self, labels: _Labels, i: int, way: int, alone: bool) -> _Labels:
        """Labels with one more group placed, as the cost model has it.

        :param alone: whether nothing slows it down.
        """
        problem, k = self._problem, self._span[i]
        word, mine = i // WORD, np.uint64(1 << i % WORD)
        whole, owner, uses = way < problem.processors, int(problem.owner[way]), np.flatnonzero(problem.uses[way])
        others = [p for p in range(problem.processors) if not whole or p != way]
        promise = alone and len(self._promises(i, way)) > 1
        against: Words = np.bitwise_or.reduce(labels.promised[others, word], axis=0)
        if promise:
            against |= labels.spoilt[way, word]
        labels = labels.take(np.flatnonzero(against & mine == 0))
        live, homes = {t: row for row, t in enumerate(self._live[i])}, labels.homes.copy()
        begin, moved = labels.free_ms[uses].max(axis=0), np.zeros(labels.size)
        for tensor in problem.operands(k):
            row = live[tensor]
            begin = np.maximum(begin, labels.ready_ms[row])
            moved += problem.way_ms[tensor, homes[row], owner]
            homes[row] |= 1 << owner
        end = begin + moved + problem.work_ms[k, way] * (1.0 if alone else 1.0 + problem.contention)
        free, back = labels.free_ms.copy(), labels.back_ms.copy()
        free[uses] = end
        made = np.full(labels.size, 1 << owner)
        for tensor in problem.returned[k]:
            back += problem.way_ms[tensor, homes[live[tensor]] if tensor in live else made, problem.host]
        promised, spoilt = labels.promised, labels.spoilt.copy()
        if promise:
            promised = promised.copy()
            promised[way] |= self._later[i][:, None]
        spoilt[others] |= self._later[i][:, None]
        rows = [live.get(tensor, len(live)) for tensor in self._live[i + 1]]
        ready = np.vstack([labels.ready_ms, end])[rows]
        load_ms = (self._weights @ free + self._load_ms[i + 1][:, None]).max(axis=0)
        return _Labels(
            free_ms=free,
            ready_ms=np.maximum(ready, free.min(axis=0)),  # nothing begins before
            homes=np.vstack([homes, made])[rows],
            back_ms=back,
            least_ms=np.maximum(labels.least_ms, np.maximum(end + self._tail_ms[i], load_ms) + back),
            promised=promised,
            spoilt=spoilt,
            ways=np.vstack([labels.ways, np.full(labels.size, way)]),
        )

    def _undominated(self, labels: _Labels, i: int, beam: int) -> tuple[Ints, float]:
        """Numbers of at most `beam` labels, most hopeful first, that none is sure to match; bound of the lost ones."""
        rows = np.arange(len(self._live[i]))[:, None]
        regret_ms = self._problem.regret_ms[list(self._live[i])]
        times = np.vstack([labels.free_ms, labels.ready_ms]) + labels.back_ms
        masks = (
            np.vstack([*labels.promised, *labels.spoilt]) & np.tile(self._to_come[i], 2 * len(labels.free_ms))[:, None]
        )
        masks = masks[masks.any(axis=1)]
        left, kept = np.argsort(labels.least_ms, kind="stable"), list[int]()
        while len(left) and len(kept) < beam:
            first, left = left[0], left[1:]
            kept.append(int(first))
            later_ms = (times[:, first, None] - times[:, left]).max(axis=0)
            near = np.flatnonzero(later_ms <= 0)
            some = left[near]
            later_ms = later_ms[near] + regret_ms[rows, labels.homes[:, first, None], labels.homes[:, some]].sum(axis=0)
            matched = (later_ms <= 0) & (masks[:, first, None] & ~masks[:, some] == 0).all(axis=0)
            left = np.delete(left, near[matched])
        return np.array(kept, dtype=np.int64), float(labels.least_ms[left[0]]) if len(left) else np.inf


def _masks(chosen: Bools) -> Words:
    """(rows, words) bit masks of (rows, groups)."""
    bits = np.zeros((len(chosen), WORD * math.ceil(chosen.shape[1] / WORD)), dtype=np.uint8)
    bits[:, : chosen.shape[1]] = chosen
    masks: Words = np.packbits(bits, axis=1, bitorder="little").view("<u8")
    return masks


def _weights(processors: int) -> Floats:
    """(weights, P) how much each processor counts in a mixture, 1 in all."""
    steps = 12 if processors == 2 else 6
    grid = np.stack(np.meshgrid(*[np.arange(steps + 1)] * processors), axis=-1).reshape(-1, processors)
    weights: Floats = grid[grid.sum(axis=1) == steps] / steps
    return weights
