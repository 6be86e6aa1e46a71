"""The public calls. The command line and the experiments use nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hetrl.errors import RunError, UsageError
from hetrl.objective import Objective
from hetrl.plan import Plan, load_plan
from hetrl.progress import Progress, Silent
from hetrl.results import Comparison, Pair, Result, Row, Sweep

if TYPE_CHECKING:
    from hetrl.graph import OperatorGraph

DEFAULT_BUDGET = 1000
DEFAULT_AGENT = "maskable-ppo"
InputShapes = Mapping[str, tuple[int, ...]]


def tune(
    model: str,
    device: str,
    *,
    engine: str | None = None,
    condition: str = "cold",
    agent: str = DEFAULT_AGENT,
    budget: int = DEFAULT_BUDGET,
    seed: int = 0,
    objective: Objective = Objective(),
    seeds: bool = True,
    input_shapes: InputShapes | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Find a plan for a model on a device.

    :param model: zoo name, or path of an ONNX file.
    :param device: name, device file, or address.
    :param condition: the device's state, `cold,ui=60hz:4ms`.
    :param budget: distinct plans that may be measured, seeds included.
    :param seeds: evaluate hand policies and the exact plan first; without them, learning is judged by itself.
    :param out: folder for the run; None writes nothing.
    :param resume: folder of a run to continue; what it measured is not measured again.
    :raises HetrlError: a mistake in one of the arguments, or budgets that no plan keeps (`Infeasible`).
    """
    import hetrl
    from hetrl.agents.problem import Problem
    from hetrl.agents.run_folder import Config, RunFolder
    from hetrl.agents.tuner import Search, run_search

    search = Search(agent, budget, seed, seeds)
    if out is not None and resume is not None:
        raise UsageError("a run is either new (out) or resumed", "give one of --out and --resume")
    problem = Problem.of(
        model, device, engine=engine, condition=condition, objective=objective, input_shapes=input_shapes
    )
    config = Config(
        model=model,
        input_shapes=dict(input_shapes or {}),
        device=device,
        engine=problem.planner.engine_name,
        condition=str(problem.condition),
        objective=objective,
        agent=agent,
        budget=budget,
        seed=seed,
        seeds=seeds,
        hetrl=hetrl.__version__,
    )
    problem.reference_ms  # noqa: B018 - whatever cannot be tuned fails before a folder is made
    folder = None
    if resume is not None:
        folder = RunFolder.open(Path(resume))
        _check_same(folder.read_config(), config, folder.path)
    elif out is not None:
        folder = RunFolder.create(Path(out))
    return run_search(problem, search, folder, config, progress or Silent())


def _check_same(earlier: object, now: object, path: Path) -> None:
    """A resumed run may change its budget and nothing else."""
    for name in ("model", "input_shapes", "device", "engine", "condition", "objective", "agent", "seed", "seeds"):
        before, wanted = getattr(earlier, name), getattr(now, name)
        if before != wanted:
            raise RunError(f"{path} was run with {name} {before!r}, not {wanted!r}", "resume it with the same options")


def measure(
    model: str,
    device: str,
    *,
    policy: str | None = None,
    plan: str | Path | Plan | None = None,
    engine: str | None = None,
    condition: str = "cold",
    objective: Objective = Objective(),
    input_shapes: InputShapes | None = None,
) -> Row:
    """Measure one plan, or what one hand policy (or `exact`) plans.

    :raises HetrlError: a mistake in one of the arguments.
    """
    from hetrl.agents.policies import find_policy
    from hetrl.agents.problem import Problem
    from hetrl.agents.rows import measured_row

    if (policy is None) == (plan is None):
        raise UsageError("a measurement is of a policy or of a plan", "give one of --policy and --plan")
    chosen = load_plan(plan) if isinstance(plan, str | Path) else plan
    hand = find_policy(policy) if policy not in (None, "exact") else None
    problem = Problem.of(
        model, device, engine=engine, condition=condition, objective=objective, input_shapes=input_shapes
    )
    name = policy or (str(plan) if not isinstance(plan, Plan) else "plan")
    if chosen is None:
        chosen = hand.plan(problem.planner) if hand is not None else problem.optimal_plan()
    return measured_row(name, chosen, problem.device, problem.condition, objective)


def compare(
    model: str,
    device: str,
    *,
    plans: Sequence[str | Path] = (),
    train: bool = False,
    agent: str = DEFAULT_AGENT,
    budget: int = DEFAULT_BUDGET,
    seed: int = 0,
    engine: str | None = None,
    condition: str = "cold",
    objective: Objective = Objective(),
    input_shapes: InputShapes | None = None,
    explain: bool = False,
    against: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Learned, hand-made and exact plans side by side, fastest first.

    :param plans: plan files to include; a single one is called `learned`.
    :param train: also train, and include what was learnt as `learned`.
    :param explain: also say where the winner wins against the runner-up, or against the row that `against` names.
    :raises HetrlError: a mistake in one of the arguments.
    """
    from hetrl.agents.comparison import compared, comparison_rows, explained
    from hetrl.agents.problem import Problem
    from hetrl.agents.rows import measured_row
    from hetrl.agents.tuner import Search, run_search

    search = Search(agent, budget, seed)
    loaded = [(str(path), load_plan(path)) for path in plans]
    problem = Problem.of(
        model, device, engine=engine, condition=condition, objective=objective, input_shapes=input_shapes
    )
    if train:
        result = run_search(problem, search, None, None, progress or Silent())
        rows, named = list(result.rows), {"learned": result.plan}
    else:
        rows, named = comparison_rows(problem), {}
    for path, plan in loaded:
        name = "learned" if len(loaded) == 1 and not train else path
        rows.append(measured_row(name, plan, problem.device, problem.condition, objective))
        named[name] = plan
    comparison = compared(problem, rows)
    if not (explain or against is not None):
        return comparison
    told = explained(problem, comparison, dict(problem.candidates) | named, against)
    return msgspec.structs.replace(comparison, explain=told)


def sweep(
    devices: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    *,
    out: str | Path,
    jobs: int | None = None,
    train: bool = False,
    agent: str = DEFAULT_AGENT,
    budget: int = DEFAULT_BUDGET,
    seed: int = 0,
    engine: str | None = None,
    condition: str = "cold",
    objective: Objective = Objective(),
    watch: Callable[[Pair, int, int], None] | None = None,
) -> Sweep:
    """Compare the plans for every pair of a device and a model, in parallel.

    The pairs are written into `out` as they are done; the same call goes on where an earlier one was stopped.

    :param devices: names or device files, all built-in ones by default; `models` likewise.
    :param jobs: processes, by default one per core.
    :param watch: called with every new pair, how many are done, and how many there are.
    :raises HetrlError: a mistake in one of the arguments. A pair that fails is a `Pair` with its error.
    """
    from hetrl.agents.tuner import Search
    from hetrl.condition import parse_condition
    from hetrl.device_bridge.spec import builtin_names
    from hetrl.sweeping import Asked, check_names, run_sweep
    from hetrl.zoo.catalog import catalog

    if jobs is not None and jobs < 1:
        raise UsageError(f"{jobs} processes do nothing", "give --jobs 1 or more")
    if train:
        Search(agent, budget, seed)  # refuses what makes no sense
    devices = list(builtin_names()) if devices is None else devices
    models = [entry.name for entry in catalog()] if models is None else models
    check_names(devices, models, engine)
    asked = Asked(
        engine=engine,
        condition=str(parse_condition(condition)),
        objective=objective,
        train=train,
        agent=agent,
        budget=budget,
        seed=seed,
    )
    return run_sweep(devices, models, asked, Path(out), jobs or os.cpu_count() or 1, watch or _nobody_watches)


def _nobody_watches(pair: Pair, done: int, total: int) -> None:
    pass


def load_model(model: str, input_shapes: InputShapes | None = None) -> OperatorGraph:
    """The operator graph of a zoo name or an ONNX file.

    :raises ModelError: the file is no valid model.
    """
    from hetrl.zoo.resolve import resolve_model

    return resolve_model(model, dict(input_shapes) if input_shapes else None)
