"""The public calls. The command line and the experiments use nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hetrl.compression import Compression
from hetrl.condition import AT_REST
from hetrl.errors import UsageError
from hetrl.objective import Objective
from hetrl.plan import Plan, load_plan
from hetrl.progress import Progress, Silent
from hetrl.results import Comparison, Pair, Result, Row, Sweep

if TYPE_CHECKING:
    from hetrl.calibrating import Calibration
    from hetrl.envs.enumerate import Restriction
    from hetrl.graph import OperatorGraph
    from hetrl.profiling import Profile
    from hetrl.scoring.pictures import Normalization

DEFAULT_BUDGET = 1000
REAL_BUDGET = 100  # on a real device, where an evaluation takes a second or more
DEFAULT_AGENT = "auto"
DEFAULT_SAMPLER = "tpe"
DEFAULT_METRIC = "top1"
InputShapes = Mapping[str, tuple[int, ...]]
Settings = Mapping[str, Any] | str | Path | None


def tune(
    model: str,
    device: str,
    *,
    engine: str | None = None,
    condition: str | None = None,
    agent: str = DEFAULT_AGENT,
    settings: Settings = None,
    budget: int | None = None,
    seed: int = 0,
    objective: Objective = Objective(),
    seeds: bool = True,
    input_shapes: InputShapes | None = None,
    seeded_weights: int | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    record: str | Path | None = None,
    eval_data: str | Path | None = None,
    metric: str = DEFAULT_METRIC,
    normalization: Normalization | None = None,
    progress: Progress | None = None,
) -> Result:
    """Find a plan for a model on a device with an agent that learns.

    :param model: zoo name, or path of an ONNX file.
    :param device: name, device file, or address.
    :param condition: the device's state, `cold,ui=60hz:4ms`; cold by default, without a UI on a real device.
    :param settings: settings of the agent by name, or a TOML or JSON file of them, in place of what suits the budget.
    :param budget: distinct plans that may be measured, seeds included; by default 1,000, on real devices 100.
    :param seeds: evaluate hand policies and the exact plan first; without them, learning is judged by itself.
    :param out: folder for the run; None writes nothing.
    :param seeded_weights: seed of weights that the model lacks, should the device run it; 0 for built-in networks.
    :param resume: folder of a run to continue; what it measured is not measured again.
    :param record: file that everything measured on the device is added to; `replay:FILE` answers from it.
    :param eval_data: npz of inputs and labels, or a folder of pictures: accuracy is then measured, on one half of it
        while searching and on the other half at the end, instead of predicted.
    :param metric: what is measured on it, see `score`.
    :param normalization: of pictures, ImageNet's by default.
    :raises HetrlError: a mistake in one of the arguments, or budgets that no plan keeps (`Infeasible`).
    """
    from hetrl.agents.base import Kind
    from hetrl.agents.start import start
    from hetrl.agents.tuner import Search
    from hetrl.scoring.measured_drops import evaluation_of

    wanted = Search(agent, DEFAULT_BUDGET if budget is None else budget, seed, seeds, Kind.AGENT, _settings(settings))
    about = (model, device, engine, condition, objective, input_shapes, seeded_weights)
    real = REAL_BUDGET if budget is None else None
    evaluation = evaluation_of(eval_data, metric, normalization)
    return start(
        wanted, *about, real_budget=real, out=out, resume=resume, record=record, evaluation=evaluation,
        progress=progress,
    )  # fmt: skip


def search(
    model: str,
    device: str,
    *,
    engine: str | None = None,
    condition: str | None = None,
    sampler: str = DEFAULT_SAMPLER,
    settings: Settings = None,
    budget: int | None = None,
    seed: int = 0,
    objective: Objective = Objective(),
    seeds: bool = True,
    input_shapes: InputShapes | None = None,
    seeded_weights: int | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    record: str | Path | None = None,
    eval_data: str | Path | None = None,
    metric: str = DEFAULT_METRIC,
    normalization: Normalization | None = None,
    progress: Progress | None = None,
) -> Result:
    """Find a plan for a model on a device with a search that does not learn a policy.

    :param sampler: what proposes plans; all else is as for `tune`.
    """
    from hetrl.agents.base import Kind
    from hetrl.agents.start import start
    from hetrl.agents.tuner import Search
    from hetrl.scoring.measured_drops import evaluation_of

    wanted = Search(
        sampler, DEFAULT_BUDGET if budget is None else budget, seed, seeds, Kind.SAMPLER, _settings(settings)
    )
    about = (model, device, engine, condition, objective, input_shapes, seeded_weights)
    real = REAL_BUDGET if budget is None else None
    evaluation = evaluation_of(eval_data, metric, normalization)
    return start(
        wanted, *about, real_budget=real, out=out, resume=resume, record=record, evaluation=evaluation,
        progress=progress,
    )  # fmt: skip


def _settings(given: Settings) -> Mapping[str, Any]:
    from hetrl.agents.settings import read_settings

    if given is None:
        return {}
    return read_settings(Path(given)) if isinstance(given, str | Path) else given


def measure(
    model: str,
    device: str,
    *,
    policy: str | None = None,
    plan: str | Path | Plan | None = None,
    engine: str | None = None,
    condition: str | None = None,
    objective: Objective = Objective(),
    input_shapes: InputShapes | None = None,
    seeded_weights: int | None = None,
    record: str | Path | None = None,
) -> Row:
    """Measure one plan, or what one hand policy (or `exact`) plans.

    :raises HetrlError: a mistake in one of the arguments.
    """
    from hetrl.agents.policies import find_policy
    from hetrl.agents.problem import Problem
    from hetrl.agents.rows import bounded, certified, measured_row

    if (policy is None) == (plan is None):
        raise UsageError("a measurement is of a policy or of a plan", "give one of --policy and --plan")
    chosen = load_plan(plan) if isinstance(plan, str | Path) else plan
    hand = find_policy(policy) if policy not in (None, "exact") else None
    problem = Problem.of(
        model,
        device,
        engine=engine,
        condition=condition,
        objective=objective,
        input_shapes=input_shapes,
        seeded_weights=seeded_weights,
        record=record,
    )
    with problem.device:  # which may hold a process, a connection or a file
        name = policy or (str(plan) if not isinstance(plan, Plan) else "plan")
        if chosen is None:
            chosen = hand.plan(problem.planner) if hand is not None else problem.optimal_plan()
        row = measured_row(name, chosen, problem)
        if policy == "exact" and problem.knows_optimum:
            return bounded(row, problem.optimum.bound_ms)
        return certified(row, chosen.expected, problem.condition)


def compare(
    model: str,
    device: str,
    *,
    plans: Sequence[str | Path] = (),
    compressions: Sequence[Compression] = (),
    train: bool = False,
    agent: str = DEFAULT_AGENT,
    budget: int | None = None,
    seed: int = 0,
    engine: str | None = None,
    condition: str | None = None,
    objective: Objective = Objective(),
    input_shapes: InputShapes | None = None,
    seeded_weights: int | None = None,
    record: str | Path | None = None,
    explain: bool = False,
    against: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Learned, hand-made and exact plans side by side, fastest first.

    :param plans: plan files to include; a single one is called `learned`.
    :param compressions: each adds the hand policies' plans for the model compressed like that.
    :param train: also train, and include what was learnt as `learned`.
    :param explain: also say where the winner wins against the runner-up, or against the row that `against` names.
    :raises HetrlError: a mistake in one of the arguments.
    """
    from hetrl.agents.comparison import compared, explained, rows_in_turns
    from hetrl.agents.problem import Problem
    from hetrl.agents.tuner import Search, run_search

    search = Search(agent, DEFAULT_BUDGET if budget is None else budget, seed)
    loaded = [(str(path), load_plan(path)) for path in plans]
    problem = Problem.of(
        model,
        device,
        engine=engine,
        condition=condition,
        objective=objective,
        input_shapes=input_shapes,
        seeded_weights=seeded_weights,
        record=record,
    )
    with problem.device:  # which may hold a process, a connection or a file
        if budget is None and not problem.device.describe().deterministic:
            search = Search(agent, REAL_BUDGET, seed)
        result = run_search(problem, search, None, None, progress or Silent()) if train else None
        given = [("learned" if len(loaded) == 1 and not train else path, plan) for path, plan in loaded]
        learned = [] if result is None else [("learned", result.plan)]
        wanted = dict.fromkeys(one for one in compressions if one.changes)
        given += [made for compression in wanted for made in problem.compressed_plans(compression)]
        named = [*learned, *problem.candidates, *given]
        if result is not None and (result.interrupted or not given):  # who interrupts does not wait for all again
            rows = [*result.rows, *rows_in_turns(problem, given)]
        else:
            rows = rows_in_turns(problem, named)
        plans_by_name = dict(problem.candidates) | dict(named)
        comparison = compared(problem, rows, plans_by_name)
        if not (explain or against is not None):
            return comparison
        told = explained(problem, comparison, dict(named), against)
        return msgspec.structs.replace(comparison, explain=told)


def profile(
    model: str,
    device: str,
    file: str | Path,
    *,
    plans: int | None = None,
    rounds: int = 1,
    within: Restriction | None = None,
    limit: int | None = None,
    engine: str | None = None,
    seed: int = 0,
    input_shapes: InputShapes | None = None,
    seeded_weights: int | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Record a model on a device: whole on each processor, and random plans; to be calibrated or replayed.

    A file that exists is continued: what it holds is not measured again.

    :param plans: random plans, 40 by default.
    :param rounds: how often each plan is measured, all others in between: what disturbs the device then hits all alike.
    :param within: every plan of this part of the plan space instead, if they are at most `limit` (2,000).
    :raises HetrlError: a mistake in one of the arguments; `DeviceFailed` if the device went away.
    """
    from hetrl import profiling
    from hetrl.envs.setting import Setting

    setting = Setting.of(
        model,
        device,
        engine=engine,
        condition=str(AT_REST),
        objective=profiling.ANY_OUTPUT,
        input_shapes=input_shapes,
        seeded_weights=seeded_weights,
    )
    with setting.device:
        return profiling.profile(
            setting,
            Path(file),
            plans=profiling.DEFAULT_PLANS if plans is None else plans,
            rounds=rounds,
            seed=seed,
            within=within,
            limit=profiling.DEFAULT_LIMIT if limit is None else limit,
            progress=progress or Silent(),
        )


def calibrate(
    files: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    models: Sequence[str] = (),
    input_shapes: InputShapes | None = None,
    seed: int = 0,
) -> Calibration:
    """Fit a device file to recordings of one device, and write it where `device` finds it again, or to `out`.

    :param models: ONNX files of recorded models that are no built-in ones.
    :param seed: of the divisions into plans that are fitted and plans that are predicted.
    :raises HetrlError: a mistake in one of the arguments.
    """
    from hetrl.calibrating import calibrate as fit

    return fit(
        [*map(Path, files)], out=None if out is None else Path(out), models=models, input_shapes=input_shapes, seed=seed
    )


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
