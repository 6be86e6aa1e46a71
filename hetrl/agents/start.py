"""A run from names: a new one, or one that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import hetrl
from hetrl.agents.problem import Problem
from hetrl.agents.run_folder import Config, RunFolder
from hetrl.agents.tuner import Search, run_search
from hetrl.errors import RunError, UsageError
from hetrl.objective import Objective
from hetrl.progress import Progress, Silent
from hetrl.results import Result
from hetrl.scoring.measured_drops import Evaluation

SAME = (
    "model", "input_shapes", "seeded_weights", "device", "engine", "condition", "objective", "evaluation", "kind",
    "method", "settings", "seed", "seeds",
)  # fmt: skip


def start(  # noqa: PLR0913
    search: Search,
    model: str,
    device: str,
    engine: str | None,
    condition: str | None,
    objective: Objective,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    seeded_weights: int | None,
    *,
    real_budget: int | None,
    out: str | Path | None,
    resume: str | Path | None,
    record: str | Path | None,
    evaluation: Evaluation | None,
    progress: Progress | None,
) -> Result:
    """Search, in a folder if one is given; the arguments are those of `hetrl.tune`.

    :param real_budget: the budget on a real device, if nobody named one.
    """
    if out is not None and resume is not None:
        raise UsageError("a run is either new (out) or resumed", "give one of --out and --resume")
    problem = Problem.of(
        model,
        device,
        engine=engine,
        condition=condition,
        objective=objective,
        input_shapes=input_shapes,
        seeded_weights=seeded_weights,
        record=record,
        evaluation=evaluation,
        tell=(progress or Silent()).note,
    )
    with problem.device:  # which may hold a process or a connection
        if real_budget is not None and not problem.device.describe().deterministic:
            search = replace(search, budget=real_budget)
        folder = earlier = None
        if resume is not None:
            folder = RunFolder.open(Path(resume))
            earlier = folder.read_config()
            if (earlier.kind, earlier.method) == (search.kind, search.method):
                # What suits a budget must not change with it: the run would propose other plans than it did.
                search = replace(search, settings=earlier.settings | dict(search.settings))
        search = search.resolved()
        config = Config(
            model=model,
            input_shapes=dict(input_shapes or {}),
            seeded_weights=seeded_weights,
            device=device,
            engine=problem.planner.engine_name,
            condition=str(problem.condition),
            objective=objective,
            evaluation=evaluation,
            kind=search.kind,
            method=search.method,
            settings=dict(search.settings),
            budget=search.budget,
            seed=search.seed,
            seeds=search.seeds,
            hetrl=hetrl.__version__,
        )
        problem.reference_ms  # noqa: B018 - whatever cannot be tuned fails before a folder is made
        if folder is not None and earlier is not None:
            _check_same(earlier, config, folder.path)
        elif out is not None:
            folder = RunFolder.create(Path(out))
        return run_search(problem, search, folder, config, progress or Silent())


def _check_same(earlier: Config, now: Config, path: Path) -> None:
    """A resumed run may change its budget and nothing else."""
    for name in SAME:
        before, wanted = getattr(earlier, name), getattr(now, name)
        if before != wanted:
            raise RunError(f"{path} was run with {name} {before!r}, not {wanted!r}", "resume it with the same options")
