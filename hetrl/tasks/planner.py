"""Plans for several models together: for each one of a few, chosen by simulating them all.

Plans take whole requests, one after the other on the processors that they hold. Of those that hold the same processors
only the fastest is a candidate, since it does all that the others do in less time; the choice among all combinations
is then exhaustive. Where there are too many, the slowest candidates go first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from hetrl.accuracy import plan_accuracy_drop_pct
from hetrl.agents.policies.placing import usual_memory
from hetrl.agents.problem import Problem
from hetrl.device_bridge.surrogate.compile import plan_of
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.plan import MadeBy, Plan
from hetrl.tasks.results import score
from hetrl.tasks.schedulers import whole
from hetrl.tasks.simulation import Run, simulate
from hetrl.tasks.streams import Stream, Task

MAX_COMBINATIONS = 1000  # simulated at most


@dataclass(frozen=True)
class Candidate:
    """A plan for one stream's model."""

    name: str
    task: Task
    latency_ms: float
    accuracy_drop_pct: float


def candidate(name: str, plan: Plan, problem: Problem) -> Candidate | None:
    """The plan as a task under the problem's condition; None if it does not run."""
    measured = problem.planner.measure(plan, problem.condition)
    if measured.latency_ms is None:
        return None
    names = [p.id for p in problem.planner.engine.processors]
    used = {name for segment in measured.segments for name in segment.processors}
    home = tuple(p for p, name in enumerate(names) if name in used)
    table = np.full((1, 1, len(names)), np.inf)
    table[0, 0, list(home)] = measured.latency_ms
    return Candidate(name, Task(table, table, home), measured.latency_ms, plan_accuracy_drop_pct(plan))


def exact_candidate(problem: Problem) -> Candidate | None:
    """The problem's exact optimum.

    :raises Infeasible: there is none.
    """
    return candidate("exact", problem.optimal_plan(), problem)


def candidates(problem: Problem, further: Sequence[Candidate]) -> list[Candidate]:
    """Single processors, hand policies' plans and `further` ones that keep the accuracy budget, fastest first.

    The fastest is in front; plans on the same processors as a faster one are left out.
    """
    plans = [*_singles(problem), *((name, plan) for name, plan in problem.hand_plans() if not plan.stretched)]
    found = [*further, *(c for name, plan in plans if (c := candidate(name, plan, problem)) is not None)]
    best: dict[tuple[int, ...], Candidate] = {}
    for one in sorted(found, key=lambda c: c.latency_ms):
        if problem.objective.keeps(one.accuracy_drop_pct, None):
            best.setdefault(one.task.home, one)
    return list(best.values())


def _singles(problem: Problem) -> list[tuple[str, Plan]]:
    """The whole model on each processor, with fallback."""
    planner = problem.planner
    memory, last = usual_memory(planner.engine), len(planner.graph.groups) - 1
    return [
        (
            processor.id,
            plan_of(
                Schedule((Placed(0, last, p, memory),)),
                planner.graph,
                planner.options,
                planner.engine,
                device=planner.spec.id,
                made_by=MadeBy(method="single"),
            ),
        )
        for p, processor in enumerate(planner.engine.processors)
    ]


def best_plans(
    streams: Sequence[Stream], choices: Sequence[Sequence[Candidate]], contention: float, duration_ms: float
) -> tuple[tuple[Candidate, ...], Run]:
    """The combination with the best `score`; of equals the first.

    :param choices: candidates of each stream, fastest first; at least one each.
    """
    few = [list(c) for c in choices]
    while prod(map(len, few)) > MAX_COMBINATIONS:
        max(few, key=len).pop()
    best: tuple[tuple[Candidate, ...], Run] | None = None
    for combination in product(*few):
        run = simulate(streams, [c.task for c in combination], whole, contention, duration_ms)
        if best is None or score(run) < score(best[1]):
            best = combination, run
    assert best is not None
    return best
