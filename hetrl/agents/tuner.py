"""The driver of all agents and samplers: seeds first, then the method, then the best plan that was found.

Nothing measured is ever lost, and nothing is measured twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec

import hetrl
from hetrl.agents.anchor import Anchor
from hetrl.agents.base import AgentRun, Kind
from hetrl.agents.comparison import rows_in_turns
from hetrl.agents.curve import curve_of, write_tensorboard
from hetrl.agents.duel import duel, finalists
from hetrl.agents.infeasible import Tried, infeasible
from hetrl.agents.ledger import Ledger, column_key, is_sound
from hetrl.agents.problem import Problem
from hetrl.agents.rows import expected_of
from hetrl.agents.run_folder import Config, RunFolder
from hetrl.agents.settings import Values, check_method, configured, find_method
from hetrl.agents.trials import Trial, TrialLog, read_trials
from hetrl.compress.weights import save_model
from hetrl.errors import DeviceFailed, Infeasible, RunError, UsageError
from hetrl.plan import Evidence, MadeBy, Plan
from hetrl.progress import Progress
from hetrl.results import PolicyLatency, Result, best_hand

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Search:
    """How a run searches.

    :param method: name of an agent or a sampler, as `kind` says.
    :param seeds: whether hand policies and the exact plan are evaluated first.
    :param settings: those of the method that are not to be what suits the budget.
    """

    method: str
    budget: int
    seed: int
    seeds: bool = True
    kind: Kind = Kind.AGENT
    settings: Values = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise UsageError(f"a budget of {self.budget} evaluations finds nothing", "give --budget 1 or more")
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"seed {self.seed} is not in 0 to {MAX_SEED}", "give --seed 0")
        check_method(self.kind, self.method)

    def resolved(self) -> Search:
        """The same with every setting named; imports the method.

        :raises UsageError: a setting that the method does not have, or that makes no sense.
        :raises MissingExtra: the method needs a package that is not installed.
        """
        method = find_method(self.kind, self.method)
        method.check()
        settings = configured(method, self.method, self.budget, self.settings)
        return replace(self, settings=msgspec.structs.asdict(settings))


def run_search(
    problem: Problem, search: Search, folder: RunFolder | None, config: Config | None, progress: Progress
) -> Result:
    """Search, and write what comes out. A `KeyboardInterrupt` ends the search early, and keeps everything.

    :raises Infeasible: no evaluated plan keeps the budgets.
    """
    begin = time.monotonic()
    # Imported here: an interrupt in the middle of importing torch must not reach what comes after the search.
    method = find_method(search.kind, search.method)
    settings = configured(method, search.method, search.budget, search.settings)
    known: list[Trial] = []
    log = None
    if folder is not None and config is not None:
        resumed = folder.trials.exists()
        if resumed:
            known = _earlier(problem, folder, search.budget)
        log = TrialLog(folder.trials, problem.header(), append=resumed)
        folder.write_config(config)
    anchor = None if problem.device.describe().deterministic else _anchor(problem, known, progress)
    ledger = Ledger(
        problem.space,
        problem.device,
        problem.condition,
        problem.objective,
        search.budget,
        log=log,
        known=known,
        update=progress.update,
    )
    if anchor is not None:
        ledger.watch = anchor.after
    run = AgentRun(search.method, ledger, search.seed, folder.path if folder else None)
    interrupted = False
    progress.start(search.budget, f"{problem.graph.name} on {problem.planner.spec.id}")
    try:
        _evaluate_seeds(problem, search, ledger)
        if anchor is not None and known:
            anchor.look(len(known))
        if not ledger.exhausted:
            method.propose(run, settings)
        if anchor is not None:
            anchor.look(ledger.evaluations)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.stop()
        if log is not None:
            log.close()
    if interrupted and ledger.best is None:
        raise KeyboardInterrupt  # nothing to show yet; what was measured is in trials.jsonl
    notes = anchor.notes if anchor else ()
    result = _result(problem, search, run, begin, folder, interrupted, notes)
    if folder is not None:
        curve = curve_of(ledger)
        folder.write_result(result, curve)
        write_tensorboard(folder.path, curve)
        if run.save_weights is not None:
            run.save_weights(folder.weights)
    return result


def _anchor(problem: Problem, known: Sequence[Trial], progress: Progress) -> Anchor:
    """A run that goes on is held against the device as it was when it began."""
    reference = problem.cpu_plan()
    taken = problem.space.encode(reference)
    key = reference.key if taken is None else column_key(taken)
    first_ms = next((t.latency_ms for t in known if t.key == key and t.latency_ms), problem.reference_ms)
    return Anchor(problem, first_ms, progress.note)


def _earlier(problem: Problem, folder: RunFolder, budget: int) -> list[Trial]:
    """The trials of a run that goes on; each must be one that this run could have written."""
    header, trials = read_trials(folder.trials)
    if header != problem.header():
        raise RunError(
            f"{folder.path} is a run of another model, device file, condition or evaluation data",
            "start a new run with another --out",
        )
    if len(trials) > budget:
        raise UsageError(
            f"{folder.path} already holds {len(trials)} evaluations", f"give --budget {len(trials)} or more"
        )
    for trial in trials:
        if not is_sound(trial, problem.space):
            raise RunError(f"{folder.trials} is damaged (evaluation {trial.n})", "start the run anew without --resume")
    return trials


def _evaluate_seeds(problem: Problem, search: Search, ledger: Ledger) -> None:
    """The exact plan first, then the reference and the hand policies, as far as the budget goes."""
    seeds = problem.candidates if search.seeds else []
    for name, plan in [*seeds, ("reference", problem.cpu_plan())]:
        if not ledger.exhausted:
            ledger.measure(plan, name)
    # From the log, so that a run which goes on proposes what it would have proposed: elsewhere it is measured anew.
    logged = ledger.known(problem.cpu_plan())
    ledger.reference_ms = logged.latency_ms if logged and logged.latency_ms else problem.reference_ms


def _result(
    problem: Problem,
    search: Search,
    run: AgentRun,
    begin: float,
    folder: RunFolder | None,
    interrupted: bool,
    notes: Sequence[str],
) -> Result:
    best = next(iter(finalists(problem, run.ledger, 1)), None)
    if best is None:
        if run.ledger.best is not None:
            raise Infeasible(
                "what keeps the accuracy budget on one half of the data breaks it on the half that was held back",
                "give a larger --budget, more data, or a larger --max-accuracy-drop",
            )
        raise _nothing_kept(problem, run.ledger)
    if problem.device.describe().deterministic:
        by, plan = best
        rows = rows_in_turns(problem, [("learned", plan), *problem.candidates])
    else:
        by, plan, rows = duel(problem, run.ledger, short=interrupted)
    learned = rows[0]
    if learned.latency_ms is None:
        raise DeviceFailed(f"the best plan no longer runs: {learned.error}", "measure it again with --resume")
    made_by = MadeBy(method=by, search=search.method, seed=search.seed, hetrl=hetrl.__version__)
    bound = problem.optimum.bound_ms if problem.knows_optimum else None
    measured = problem.drops.evidence_of_plan(plan) is Evidence.MEASURED
    accuracy = problem.drops.held_back(plan.compression) if measured else None
    drop_pct = learned.accuracy_drop_pct if accuracy is None else accuracy.drop_pct
    expected = expected_of(msgspec.structs.replace(learned, accuracy_drop_pct=drop_pct), problem.condition, bound)
    plan = msgspec.structs.replace(plan, expected=expected, made_by=made_by)
    plan, smaller, said = _with_artefact(problem, folder, plan)
    hand = best_hand(rows)
    return Result(
        run=str(folder.path) if folder else None,
        plan_path=str(folder.path / "plan.json") if folder else None,
        plan=plan,
        compressed_model=smaller,
        device=problem.planner.spec.id,
        model=problem.graph.name,
        engine=problem.planner.engine_name,
        condition=str(problem.condition),
        agent=search.method,
        seed=search.seed,
        latency_ms=learned.latency_ms,
        best_hand=PolicyLatency(hand.policy, hand.latency_ms or 0.0) if hand else None,
        exact_ms=problem.optimum.latency_ms if problem.knows_optimum and problem.optimum.proven else None,
        bound_ms=bound,
        gap_to_exact=None if bound is None else (learned.latency_ms - bound) / bound,
        accuracy_drop_pct=drop_pct,
        accuracy=accuracy,
        frame_drop_rate=learned.frame_drop_rate,
        peak_memory_mb=learned.peak_memory_mb,
        energy_mj=learned.energy_mj,
        evaluations=run.ledger.evaluations,
        env_steps=run.env_steps,
        wall_s=time.monotonic() - begin,
        evidence=learned.evidence,
        rows=tuple(rows),
        interrupted=interrupted,
        notes=(*notes, *said, *problem.device.notes),
    )


def _with_artefact(problem: Problem, folder: RunFolder | None, plan: Plan) -> tuple[Plan, str | None, tuple[str, ...]]:
    """The plan with the hash of its compressed model's file, which is written; that file; or why there is none."""
    if folder is None:
        return plan, None, ()
    model = problem.drops.model(plan.compression) if plan.compression.changes else None
    try:
        if model is None:
            folder.compressed_model.unlink(missing_ok=True)  # of a run that has gone on since
            return plan, None, ()
        sha256 = save_model(model, folder.compressed_model)
    except (OSError, UsageError) as error:  # the plan is worth more than its model, which can be made again
        return plan, None, (f"the compressed model could not be written: {error}",)
    compression = msgspec.structs.replace(plan.compression, artefact_sha256=sha256)
    return msgspec.structs.replace(plan, compression=compression), str(folder.compressed_model), ()


def _nothing_kept(problem: Problem, ledger: Ledger) -> Infeasible:
    tried = [
        Tried(t.by, t.accuracy_drop_pct, t.frame_drop_rate, t.error)
        for t in ledger.trials
        if t.plan is None or not t.plan.stretched
    ]
    return infeasible(tried, problem.objective)
