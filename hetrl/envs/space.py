"""The plans that a run may choose from, as a sequence of discrete decisions.

First what holds for the whole plan (granularity, memory type, compression, queue window, kernel slicing, a cap per
processor), then one decision per fusion group in execution order: 0 continues the segment before it, 1 + o starts a
new segment with placement o. Masks leave out what is impossible or says the same twice, so that every complete
sequence of legal decisions is a valid plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from hetrl.accuracy import INT8, PREDICTED_DROPS, AccuracyDrops
from hetrl.compression import NO_COMPRESSION, Compression
from hetrl.device_bridge.spec import GpuCost, Processor
from hetrl.device_bridge.surrogate.compile import option_of, plan_of, schedule_of
from hetrl.device_bridge.surrogate.cost_model import Schedules
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.device_bridge.surrogate.segments import segments
from hetrl.device_bridge.surrogate.tables import MAX_CHAIN, MEMORIES
from hetrl.envs.compressions import compressions
from hetrl.errors import UsageError
from hetrl.graph import OpKind
from hetrl.objective import Objective
from hetrl.plan import Axis, MadeBy, Memory, Plan
from hetrl.plan_check import check_plan

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
QUEUE_WINDOWS = (16, 4, 2, 1)
SLICES_MS: tuple[float | None, ...] = (None, 4.0, 1.0)
DUTIES = (1.0, 0.75, 0.5, 0.25)
CONTINUE = 0
MIN_SUBGRAPH = 2  # groups of a segment of granularity `subgraph`
_QUEUE_WINDOWS, _DUTIES = np.array(QUEUE_WINDOWS), np.array(DUTIES)
_SLICES_MS = np.array([np.inf if ms is None else ms for ms in SLICES_MS])


class Granularity(StrEnum):
    """How finely work is distributed."""

    SINGLE = "single"  # the whole model on one processor
    SUBGRAPH = "subgraph"  # runs of at least two fusion groups, each on one processor
    INTER_OP = "inter_op"  # every fusion group placed or split on its own, independent ones side by side
    INTRA_OP = "intra_op"  # fusion groups may also be split over processors


GRANULARITIES = tuple(Granularity)
_INTER_OP, _INTRA_OP = GRANULARITIES.index(Granularity.INTER_OP), GRANULARITIES.index(Granularity.INTRA_OP)


@dataclass(frozen=True)
class Decision:
    """One global decision: its name and what its choices mean, for people and for reports."""

    name: str
    choices: tuple[str, ...]


class PlanSpace:
    """All plans of one model on one engine set that a run allows.

    :param device: the surrogate that knows which placements are possible.
    :param objective: its accuracy budget bounds compression, and forbids int8 where it cannot be paid.
    :param drops: what these cost.
    :cvar windows: settings that keep a frame limit; as `slices_ms` and `duties`, the first of each holds nothing back.
    """

    windows: tuple[int, ...] = QUEUE_WINDOWS
    slices_ms: tuple[float | None, ...] = SLICES_MS
    duties: tuple[float, ...] = DUTIES

    def __init__(self, device: SurrogateDevice, objective: Objective, drops: AccuracyDrops = PREDICTED_DROPS) -> None:
        self.device = device
        self.graph = device.graph
        self.engine = device.engine
        self.options = device.options
        self.drops = drops
        budget = objective.max_accuracy_drop_pct
        self.compressions = compressions(device, drops, budget)
        memories = tuple(m for m in MEMORIES if any(m in p.memory for p in self.engine.processors))
        self.memories = memories or (Memory.BUFFER,)
        self._memory_index = np.array([MEMORIES.index(m) for m in self.memories])
        self.groups = len(self.graph.groups)
        if all(self.graph.group_geometry(g).kind is OpKind.VIEW for g in range(self.groups)):
            raise UsageError(f"{self.graph.name!r} has no operator that takes time, so there is nothing to place")
        self.branches = bool(device.cost_model().tables.workload.independent.any())
        self.single = np.array([not o.split for o in self.options])
        self.chained = np.array([o.axis is Axis.HEIGHT for o in self.options])
        possible = [device.cost_model(compression).tables.possible for compression in self.compressions]
        self._possible: Bools = np.array(possible)  # (compressions, groups, O)
        self.possible: Bools = np.logical_or.reduce(possible)
        precisions = [{self.engine.processors[p].precision for p in o.processors} for o in self.options]
        self._int8 = np.array([INT8 in found for found in precisions], dtype=np.int64)
        both = [[drops.drop_pct(c, int8=b) for b in (False, True)] for c in self.compressions]
        self._drop_pct = np.array(both)  # (compressions, without and with int8)
        self._affordable: Bools = self._drop_pct[:, self._int8] <= budget  # (compressions, O)

    @cached_property
    def globals(self) -> tuple[Decision, ...]:
        """The global decisions, in order."""
        return (
            Decision("granularity", tuple(g.value for g in GRANULARITIES)),
            Decision("memory", tuple(m.value for m in self.memories)),
            Decision("compression", tuple(map(str, self.compressions))),
            Decision("queue_window", tuple(str(w) for w in QUEUE_WINDOWS)),
            Decision("kernel_slice_ms", tuple("none" if s is None else f"{s:g}" for s in SLICES_MS)),
            *(Decision(f"cap {p.id}", tuple(f"{d:g}" for d in DUTIES)) for p in self.engine.processors),
        )

    @property
    def length(self) -> int:
        """Decisions per plan."""
        return len(self.globals) + self.groups

    @property
    def width(self) -> int:
        """Most choices that any decision has."""
        return max(1 + len(self.options), *(len(d.choices) for d in self.globals))

    def mask(self, step: int, taken: Ints) -> Bools:
        """(width, B) choices that are legal at `step`, given (length, B) decisions of which `step` are taken."""
        first = len(self.globals)
        if step > first:
            placed, length = self._state(taken[first:step])
            return self.group_mask(step - first, taken[0], taken[2], placed, length)
        if step == first:
            nothing = np.zeros(taken.shape[1], dtype=np.int64)
            return self.group_mask(0, taken[0], taken[2], nothing, nothing)
        legal = np.zeros((self.width, taken.shape[1]), dtype=np.bool_)
        legal[: len(self.globals[step].choices)] = True
        return legal

    def group_mask(self, k: int, granularity: Ints, compression: Ints, placed: Ints, length: Ints) -> Bools:
        """(width, B) codes that are legal for group `k`, from (B,) each.

        :param granularity: its index, and that of the compression in `compression`.
        :param placed: option of the segment before, which has `length` groups; neither matters for the first group.
        """
        legal = np.zeros((self.width, len(granularity)), dtype=np.bool_)
        affordable, possible = self._affordable[compression].T, self._possible[compression, k]  # (O, B) and (B, O)
        split_allowed = (granularity == _INTRA_OP) | ((granularity == _INTER_OP) & self.branches)
        placements = possible.T & (self.single[:, None] | split_allowed)
        legal[1 : 1 + len(self.options)] = placements & affordable
        one = granularity == GRANULARITIES.index(Granularity.SINGLE)
        if k == 0:
            everywhere = self._possible[compression].all(axis=1) & self.single
            legal[1 : 1 + len(self.options), one] = (everywhere.T & affordable)[:, one]
            return legal
        chains = self.chained[placed] & (length < MAX_CHAIN) & (granularity != _INTER_OP)
        legal[CONTINUE] = possible[np.arange(len(placed)), placed] & (self.single[placed] | chains)
        same = np.flatnonzero(self.single[placed] & legal[CONTINUE])
        legal[1 + placed[same], same] = False  # a neighbour on the same processor is the same segment
        legal[1:, one] = False
        short = (granularity == GRANULARITIES.index(Granularity.SUBGRAPH)) & legal[CONTINUE]
        legal[1:, short & ((length < MIN_SUBGRAPH) | (k == self.groups - 1))] = False
        return legal

    def canonical(self, taken: Ints) -> Ints:
        """(length, B) decisions with those that do not matter set to their first choice: equal plans, equal columns.

        Granularity only guides the choice of placements, unless branches run side by side. Without work on a processor
        that has them to choose from, a memory type means nothing; nor does a queue window without work on a GPU,
        slicing without work on one whose kernels can be sliced, or the cap of a processor that has no work.
        """
        first = len(self.globals)
        same = taken.copy()
        batch, _ = self.schedules(taken)
        same[0] = np.where(batch.overlap, _INTER_OP, 0)
        works = np.array([[p in o.processors for o in self.options] for p in range(len(self.engine.processors))])
        busy: Bools = np.any(works[:, batch.option], axis=1)
        same[5:first][~busy] = 0
        means = np.array([_means(p) for p in self.engine.processors])
        for decision, matters in zip((1, 3, 4), means.T, strict=True):
            same[decision, ~busy[matters].any(axis=0)] = 0
        return same

    def _state(self, codes: Ints) -> tuple[Ints, Ints]:
        """Current option and length of the segment that each plan is in, after the given group decisions."""
        positions = np.arange(len(codes))[:, None]
        start = np.where(codes != CONTINUE, positions, 0).max(axis=0)
        return codes[start, np.arange(codes.shape[1])] - 1, len(codes) - start

    def schedules(self, taken: Ints) -> tuple[Schedules, Ints]:
        """Complete decisions (length, B) as arrays for the cost model, and the index of each one's compression."""
        first, size = len(self.globals), taken.shape[1]
        option, start, end = segments(taken[first:])
        overlap = np.zeros(size, dtype=np.bool_)
        if self.branches:
            overlap = (taken[0] == _INTER_OP) & (option != option[0]).any(axis=0)
        batch = Schedules(
            option=option,
            start=start,
            end=end,
            memory=np.broadcast_to(self._memory_index[taken[1]], (self.groups, size)),
            duty=_DUTIES[taken[5:first]],
            queue_window=_QUEUE_WINDOWS[taken[3]],
            slice_ms=_SLICES_MS[taken[4]],
            overlap=overlap,
        )
        return batch, taken[2]

    def possible_at(self, compression: Compression) -> Bools:
        """(n, O) which options a plan of that compression may choose for which group."""
        index = self.compressions.index(compression)
        allowed: Bools = self._possible[index] & self._affordable[index]
        return allowed

    def possible_key(self, k: int) -> bytes:
        """Equal for groups that may have the same placements, whatever the compression."""
        return self._possible[:, k].tobytes()

    def accuracy_drop_pct(self, batch: Schedules, compression: Ints) -> Floats:
        """(B,) what plans as `schedules` gives them cost in accuracy."""
        int8 = self._int8[batch.option].max(axis=0) if self._int8.any() else 0
        drops: Floats = self._drop_pct[compression, int8]
        return drops

    def segment_ends(self, taken: Ints) -> Ints:
        """Last fusion group of each segment of one complete sequence of decisions (length,)."""
        begins = np.flatnonzero(np.asarray(taken)[len(self.globals) :] != CONTINUE)
        return np.append(begins[1:], self.groups) - 1

    def plan(self, taken: Ints, made_by: MadeBy | None = None) -> Plan:
        """The plan of one complete sequence of decisions (length,)."""
        batch, compression = self.schedules(np.asarray(taken)[:, None])
        starts = sorted(set(batch.start[:, 0].tolist()))
        memory = self.memories[int(taken[1])]
        segments = tuple(Placed(s, int(batch.end[s, 0]), int(batch.option[s, 0]), memory) for s in starts)
        window = QUEUE_WINDOWS[int(taken[3])]
        schedule = Schedule(
            segments,
            tuple(float(d) for d in batch.duty[:, 0]),
            None if window == QUEUE_WINDOWS[0] else window,
            SLICES_MS[int(taken[4])],
            bool(batch.overlap[0]),
        )
        return plan_of(
            schedule,
            self.graph,
            self.options,
            self.engine,
            device=self.device.spec.id,
            compression=self.compressions[int(compression[0])],
            made_by=made_by,
        )

    def encode(self, plan: Plan) -> Ints | None:
        """The canonical decisions of a plan, None if the space does not hold it."""
        groups = check_plan(plan, self.graph)
        index = {p.id: i for i, p in enumerate(self.engine.processors)}
        in_order = [g for segment in groups for g in segment] == list(range(self.groups))
        known = {p for segment in plan.segments for p in segment.processors} <= set(index)
        held = plan.process_cap is not UNSET
        if held or not (in_order and known and {option_of(s, index) for s in plan.segments} <= set(self.options)):
            return None
        workload = self.device.cost_model().tables.workload
        schedule, fallen = schedule_of(plan, self.engine, self.options, workload, groups)
        taken = None if fallen else self.decisions(schedule, plan.compression.shapes)
        return None if taken is None else self.canonical(taken[:, None])[:, 0]

    def decisions(self, schedule: Schedule, compression: Compression = NO_COMPRESSION) -> Ints | None:
        """The decisions that give a schedule over the standard options, None if the space does not hold it."""
        choosing = [any(self.engine.processors[p].memory for p in o.processors) for o in self.options]
        memories = {placed.memory for placed in schedule.segments if choosing[placed.option]} or {self.memories[0]}
        window = schedule.queue_window or QUEUE_WINDOWS[0]
        duty = schedule.duty or (DUTIES[0],) * len(self.engine.processors)
        if len(memories) != 1 or compression not in self.compressions or window not in QUEUE_WINDOWS:
            return None
        if schedule.slice_ms not in SLICES_MS or not set(duty) <= set(DUTIES) or not memories <= set(self.memories):
            return None
        codes: list[int] = []
        for placed in schedule.segments:
            same = bool(codes) and self.single[placed.option] and _current(codes) == placed.option
            if same and self.engine.on_machine and duty[self.options[placed.option].processors[0]] < 1:
                return None  # a capped processor idles in between: the space has no such cuts
            codes.append(CONTINUE if same else 1 + placed.option)
            codes += [CONTINUE] * (placed.end - placed.start)
        head = [
            _INTER_OP if schedule.overlap else _INTRA_OP,
            self.memories.index(next(iter(memories))),
            self.compressions.index(compression),
            QUEUE_WINDOWS.index(window),
            SLICES_MS.index(schedule.slice_ms),
            *(DUTIES.index(d) for d in duty),
        ]
        taken = np.array(head + codes, dtype=np.int64)
        return taken if self.is_legal(taken) else None

    def is_legal(self, taken: Ints) -> bool:
        """Whether these are complete decisions (length,), each of them legal."""
        if len(taken) != self.length or taken.min() < 0 or taken.max() >= self.width:
            return False
        column = taken[:, None]
        return all(self.mask(step, column)[taken[step], 0] for step in range(self.length))


def _means(processor: Processor) -> tuple[bool, bool, bool]:
    """Whether memory type, queue window and slicing mean anything for a processor."""
    sliced = isinstance(processor.cost, GpuCost)
    return bool(processor.memory), sliced or processor.unit == "gpu", sliced


def _current(codes: Sequence[int]) -> int:
    """Option of the segment that the last code is in."""
    return next(code - 1 for code in reversed(codes) if code != CONTINUE)
