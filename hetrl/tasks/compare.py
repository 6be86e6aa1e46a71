"""The public call: several models on one device under several schedulers, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from hetrl.accuracy import INT8, predicted_accuracy_drop_pct
from hetrl.agents.policies.band_rule import fastest_worker
from hetrl.agents.policies.unit_subgraphs import profile
from hetrl.agents.problem import Problem
from hetrl.condition import parse_condition
from hetrl.errors import Infeasible, UnknownName, UsageError
from hetrl.objective import Objective
from hetrl.plan import load_plan
from hetrl.tasks.names import EXACT, HETRL, PLANS, SCHEDULERS
from hetrl.tasks.planner import Candidate, best_plans, candidate, candidates, exact_candidate
from hetrl.tasks.results import TaskComparison, TaskRow, latencies, missed, score, stream_result, utilization
from hetrl.tasks.schedulers import BAND_SCHEDULERS, band_scheduler, whole
from hetrl.tasks.simulation import Run, simulate
from hetrl.tasks.streams import Stream, Task, check_streams

T = TypeVar("T")


def compare_tasks(  # noqa: PLR0913 - a public call takes all its options by name
    models: Sequence[str],
    device: str,
    *,
    period_ms: Sequence[float],
    deadline_ms: Sequence[float] = (),
    duration_ms: float = 2000.0,
    schedulers: Sequence[str] = SCHEDULERS,
    plans: Sequence[str | Path] = (),
    engine: str | None = None,
    condition: str = "cold",
    profiled: str = "cold",
    objective: Objective = Objective(),
) -> TaskComparison:
    """Requests of several models at once, simulated under each scheduler; rows with the best first.

    :param models: zoo names or ONNX files, one for each stream of requests.
    :param period_ms: time between requests, one for all streams or one each.
    :param deadline_ms: how long after it came a request may end; by default its period.
    :param schedulers: of `hetrl.tasks.names.SCHEDULERS`.
    :param plans: plan files for some of the models; row `plans` runs them, and the exact plan of each other model.
    :param profiled: the condition in which Band's schedulers were told what subgraphs take.
    :param objective: its accuracy budget holds for every model; its frame limit is not looked at.
    :raises HetrlError: a mistake in one of the arguments, or a model that nothing runs.
    """
    for name in schedulers:
        if name not in SCHEDULERS:
            raise UnknownName("scheduler", name, SCHEDULERS, "hetrl tasks --help")
    periods = _for_each(models, period_ms, "--period")
    deadlines = _for_each(models, deadline_ms, "--slo") if deadline_ms else periods
    streams = [Stream(*values) for values in zip(models, periods, deadlines, strict=True)]
    check_streams(streams, duration_ms)
    problems = {
        model: Problem.of(model, device, engine=engine, condition=condition, objective=objective, input_shapes=None)
        for model in dict.fromkeys(models)
    }
    setting = _Setting(streams, [problems[m] for m in models], duration_ms, profiled, [Path(p) for p in plans])
    wanted = [s for s in SCHEDULERS if s in schedulers] + [PLANS] * bool(plans)
    rows = sorted((setting.row(name) for name in wanted), key=_rank)
    planner = setting.problems[0].planner
    return TaskComparison(
        device=planner.spec.id,
        engine=planner.engine_name,
        condition=condition,
        profiled=profiled,
        duration_ms=duration_ms,
        rows=tuple(rows),
        winner=next((row.scheduler for row in rows if row.keeps_budgets), None),
    )


def _for_each(models: Sequence[str], values: Sequence[float], option: str) -> list[float]:
    if len(values) not in (1, len(models)):
        raise UsageError(f"{len(values)} of {option} do not go with {len(models)} of --model", "give one, or one each")
    return list(values) * (len(models) if len(values) == 1 else 1)


def _rank(row: TaskRow) -> tuple[int, int, float, bool]:
    """By what the planner minimises; of equals, what hetrl chose comes first."""
    mean_ms = row.latency_ms.mean_ms if row.latency_ms else float("inf")
    return row.misses, row.dropped, mean_ms, row.scheduler != HETRL


@dataclass(frozen=True)
class _Ran:
    """A run with what it cost, and what each stream ran."""

    run: Run
    runs: tuple[str, ...]
    accuracy_drop_pct: float


@dataclass(frozen=True)
class _Setting:
    streams: Sequence[Stream]
    problems: Sequence[Problem]
    duration_ms: float
    profiled: str
    plans: Sequence[Path]

    @cached_property
    def names(self) -> list[str]:
        return [p.id for p in self.problems[0].planner.engine.processors]

    @cached_property
    def contention(self) -> float:
        """By how much processors that work at once slow each other down: the largest of the engine's links."""
        return max((link.contention.value for link in self.problems[0].planner.engine.links), default=0.0)

    @cached_property
    def band_tasks(self) -> list[Task]:
        return self._by_problem(self._band_task)

    def _band_task(self, problem: Problem) -> Task:
        told = profile(problem.planner, parse_condition(self.profiled))
        actual = profile(problem.planner, problem.condition)
        return Task(told.expected_ms, actual.expected_ms, (fastest_worker(told),))

    @cached_property
    def exact(self) -> list[Candidate]:
        found = self._by_problem(exact_candidate)
        if any(one is None for one in found):
            raise Infeasible("a model's exact plan does not run", "choose a smaller model")
        return [one for one in found if one is not None]

    @cached_property
    def given(self) -> list[Candidate]:
        """The plan files' plans for the models that they are for."""
        by_hash = {problem.graph.structure_hash: None for problem in self.problems}
        found: dict[str, Candidate] = {}
        for path in self.plans:
            plan = load_plan(path)
            model = plan.model.structure_sha256
            if model not in by_hash:
                raise UsageError(f"{path} is a plan for {plan.model.name!r}, which is not asked for", "add its --model")
            if model in found:
                raise UsageError(f"{path} is a second plan for {plan.model.name!r}", "give one plan for each model")
            problem = next(p for p in self.problems if p.graph.structure_hash == model)
            one = candidate(path.name, plan, problem)
            if one is None:
                raise Infeasible(f"{path} does not run under this condition", "`hetrl measure --plan` says why")
            found[model] = one
        return [found.get(p.graph.structure_hash, exact) for p, exact in zip(self.problems, self.exact, strict=True)]

    def _by_problem(self, make: Callable[[Problem], T]) -> list[T]:
        """One for each stream; streams of one model share it."""
        made: dict[int, T] = {}
        for problem in self.problems:
            if id(problem) not in made:
                made[id(problem)] = make(problem)
        return [made[id(problem)] for problem in self.problems]

    def row(self, name: str) -> TaskRow:
        """The row of a scheduler."""
        ran = self._ran(name)
        run, runs = ran.run, ran.runs
        return TaskRow(
            scheduler=name,
            throughput_per_s=1e3 * sum(r.end_ms is not None for r in run.requests) / run.horizon_ms,
            misses=sum(map(missed, run.requests)),
            dropped=sum(r.dropped for r in run.requests),
            latency_ms=latencies(run.requests),
            utilization=utilization(run, self.names),
            accuracy_drop_pct=ran.accuracy_drop_pct,
            keeps_budgets=self._keeps(ran),
            streams=tuple(stream_result(run, i, s, runs[i]) for i, s in enumerate(self.streams)),
        )

    def _keeps(self, ran: _Ran) -> bool:
        return self.problems[0].objective.keeps(ran.accuracy_drop_pct, None)

    def _ran(self, name: str) -> _Ran:
        if name == HETRL:
            return self._best()
        if name in BAND_SCHEDULERS:
            return self._band(name)
        return self._planned(self.exact if name == EXACT else self.given)

    def _band(self, name: str) -> _Ran:
        cpu = next(i for i, p in enumerate(self.problems[0].planner.engine.processors) if p.unit == "cpu")
        scheduler = band_scheduler(name, cpu)
        run = simulate(self.streams, self.band_tasks, scheduler, self.contention, self.duration_ms)
        int8 = any(self.names[p].endswith(f"/{INT8}") for e in run.executions for p in e.piece.processors)
        return _Ran(run, (name,) * len(self.streams), predicted_accuracy_drop_pct(0.0, int8=int8))

    def _planned(self, chosen: Sequence[Candidate]) -> _Ran:
        run = simulate(self.streams, [c.task for c in chosen], whole, self.contention, self.duration_ms)
        return _Ran(run, tuple(c.name for c in chosen), max(c.accuracy_drop_pct for c in chosen))

    def _best(self) -> _Ran:
        """The best plans together, or the scheduler that is better still: never worse than any row beside it."""
        further = [self.exact, *([self.given] if self.plans else [])]
        choices = [candidates(problem, [one[i] for one in further]) for i, problem in enumerate(self.problems)]
        chosen, _ = best_plans(self.streams, choices, self.contention, self.duration_ms)
        found = [self._planned(chosen), *(self._planned(f) for f in further), *map(self._band, BAND_SCHEDULERS)]
        return min((ran for ran in found if self._keeps(ran)), key=lambda ran: score(ran.run))
