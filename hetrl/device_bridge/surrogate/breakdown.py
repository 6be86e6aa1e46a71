"""What every position of a simulated plan spends its time on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.device import Simulated
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.device_bridge.surrogate.tables import MEMORIES, made_inside
from hetrl.explanation import NOTHING, Spent
from hetrl.plan import DEFAULT_QUEUE_WINDOW


@dataclass(frozen=True)
class Position:
    """One fusion group at its place in the order.

    :param group: its number in the operator graph.
    :param processors: ids of those that it runs on.
    :param ends: whether a segment ends here; `may_end`, whether one could: it is not inside a shared segment.
    """

    group: int
    processors: tuple[str, ...]
    ends: bool
    may_end: bool
    spent: Spent


def breakdown(simulated: Simulated) -> tuple[Position, ...]:
    """All positions in the order in which they run; their times sum to the latency."""
    model, schedule, answers = simulated.model, simulated.schedule, simulated.answers
    options, processors = model.tables.options, model.tables.engine.processors
    steps, fallen = answers.steps, {f.position for f in simulated.fallen}
    found = []
    horizon = 0.0  # until when the positions before are done
    for placed in schedule.segments:
        option = options[placed.option]
        for k in range(placed.start, placed.end + 1):
            moved, worked = float(steps.transfer_ms[k, 0]), float(steps.work_ms[k, 0])
            spent = _spent(model, schedule, placed, k, moved, worked)
            if k in fallen:
                spent = Spent(fallback_ms=moved + worked)
            if schedule.overlap:
                last = k + 1 == len(model.tables.workload.items)
                until = float(answers.latency_ms[0]) if last else max(horizon, float(steps.end_ms[k, 0]))
                hidden = moved + worked - (until - horizon)
                spent = spent.plus(Spent(overlap_ms=-max(0.0, hidden)))
                horizon = until
            names = tuple(processors[p].id for p in option.processors)
            ends = k == placed.end
            group = model.tables.workload.items[k].group
            found.append(Position(group, names, ends, ends or not option.split, spent))
    return tuple(found)


def _spent(model: CostModel, schedule: Schedule, placed: Placed, k: int, moved: float, worked: float) -> Spent:
    """A position's time by kind; contention is what is left of its work."""
    tables, m = model.tables, MEMORIES.index(placed.memory)
    offset = 0
    if model.chained[placed.option]:
        offset = placed.end - k
    elif model.branched[placed.option]:
        offset = int(made_inside(tables.workload, k, placed.start))
    window = np.asarray(schedule.queue_window or DEFAULT_QUEUE_WINDOW)
    slice_ms = np.asarray(schedule.slice_ms or np.inf)
    busy = np.array([
        float(model.kernel_ms(p, time, window, slice_ms)[0])
        for p, time in enumerate(tables.time_ms[m, k, placed.option, offset])
    ])  # fmt: skip
    capped = float((busy / (schedule.duty or 1.0)).max())
    compute = float(busy.max())
    stall = 0.0 if tables.stall_ms is None else float(tables.stall_ms[m, k, placed.option, 0])
    sync = float(model.share_rates[0][placed.option, m]) if k == placed.start else 0.0
    return Spent(
        compute_ms=compute,
        contention_ms=worked - capped - stall,
        transfer_ms=moved - sync,
        sync_ms=sync,
        fallback_ms=stall,
        idle_ms=capped - compute,
    )


def total(positions: Sequence[Position]) -> Spent:
    """The sum over some positions."""
    spent = NOTHING
    for position in positions:
        spent = spent.plus(position.spent)
    return spent
