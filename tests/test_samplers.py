"""Samplers: encodings, what they are told, determinism, resuming, the journal, plug-ins."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import hetrl
from hetrl import plugins
from hetrl.agents.base import Kind
from hetrl.agents.hybrid.growing import completed
from hetrl.agents.problem import Problem
from hetrl.agents.run_folder import Config, RunFolder
from hetrl.agents.samplers import optuna_methods
from hetrl.agents.samplers.annealing import AnnealingConfig, moved, whole_model
from hetrl.agents.samplers.drafts import Drawer
from hetrl.agents.samplers.encoding import Cuts, Encoding, Layers
from hetrl.agents.trials import Trial, read_trials
from hetrl.agents.tuner import Search, run_search
from hetrl.condition import Condition
from hetrl.device_bridge.base import MockDevice
from hetrl.device_bridge.registry import open_device
from hetrl.errors import MissingExtra, UnknownName, UsageError
from hetrl.measurement import Failure, Measurement
from hetrl.objective import Objective
from hetrl.plan import Plan
from hetrl.plan_check import check_plan
from hetrl.progress import Silent
from hetrl.results import Result
from hetrl.testing.models import random_decisions, random_graph
from tests.surrogate_help import chain_graph
from tests.tiny_models import save_tiny_cnn

SAMPLERS = plugins.names(Kind.SAMPLER.group)
OPTUNA = ("tpe", "nsga2", "cmaes", "gp")
BUDGETS = {"gp": 12}  # its proposals after the first ten are slow
BUDGET = 30
OBJECTIVES = (
    Objective(),
    Objective(max_accuracy_drop_pct=5.0),
    Objective(max_accuracy_drop_pct=2.0, max_frame_drop_rate=0.05),
)


def random_problem(seed: int, objective: Objective = OBJECTIVES[0], layers: int = 8) -> Problem:
    return Problem.on(open_device("d1", random_graph(seed, layers)), Condition(), objective)


def encodings(problem: Problem, pieces: int) -> list[Encoding]:
    return [Cuts(problem.space, problem.objective, pieces), Layers(problem.space, problem.objective)]


# ---- encodings -----------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(2, 14), st.sampled_from(OBJECTIVES), st.integers(1, 9))
def test_all_parameters_are_legal_plans_that_encode_to_themselves(
    seed: int, layers: int, objective: Objective, pieces: int
) -> None:
    problem = random_problem(seed, objective, layers)
    draw = np.random.default_rng(seed)
    for encoding in encodings(problem, pieces):
        counts = [p.count for p in encoding.parameters]
        for vector in draw.integers(counts, size=(10, len(counts))):
            taken = encoding.decode(vector)
            assert problem.space.is_legal(taken)
            back = encoding.encode(taken)
            assert (back >= 0).all() and (back < counts).all()
            if isinstance(encoding, Cuts):  # the other one cannot say where a chain begins anew
                again = np.stack([taken, encoding.decode(back)], axis=1)
                assert len(np.unique(problem.space.canonical(again), axis=1).T) == 1


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from(OBJECTIVES))
def test_with_a_piece_for_every_group_cuts_describe_every_plan(seed: int, objective: Objective) -> None:
    problem = random_problem(seed, objective)
    space = problem.space
    encoding = Cuts(space, Objective(max_accuracy_drop_pct=5.0, max_frame_drop_rate=0.5), space.groups)
    plans = random_decisions(space, seed, 10)
    found = np.stack([encoding.decode(encoding.encode(plan)) for plan in plans.T], axis=1)
    assert (space.canonical(found) == space.canonical(plans)).all()


def test_few_pieces_come_near_to_the_exact_plan() -> None:
    problem = Problem.on(open_device("d1", hetrl.load_model("resnet18")), Condition(), Objective())
    exact = problem.space.encode(problem.optimal_plan())
    assert exact is not None and problem.optimum.latency_ms is not None
    gaps = []
    for pieces in (1, 8):
        encoding = Cuts(problem.space, problem.objective, pieces)
        near = problem.device.measure(problem.space.plan(encoding.decode(encoding.encode(exact))), Condition())
        assert near.latency_ms is not None
        gaps.append(near.latency_ms / problem.optimum.latency_ms - 1)
    assert gaps[1] <= 0.01 < gaps[0]


def test_only_decisions_that_matter_are_parameters() -> None:
    names = {p.name for p in Cuts(random_problem(1).space, Objective(), 4).parameters}
    assert not {n for n in names if n.startswith("cap") or n in ("queue_window", "kernel_slice_ms", "compression")}
    limited = Problem.on(open_device("d1", chain_graph(3, channels=40)), Condition(), OBJECTIVES[2])
    names = {p.name for p in Cuts(limited.space, limited.objective, 4).parameters}
    assert {"queue_window", "kernel_slice_ms", "compression", "cap gpu/mace/fp32"} <= names


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from(OBJECTIVES))
def test_moves_and_completions_are_legal(seed: int, objective: Objective) -> None:
    problem = random_problem(seed, objective)
    space, rng = problem.space, np.random.default_rng(seed)
    drawer = Drawer(space, objective)
    plans = random_decisions(space, seed, 6)
    plans[0] = drawer.heads[0]  # single processors would forbid what follows
    plans = np.stack([drawer.settle(drawer.draft(plan)) for plan in plans.T], axis=1)
    first = len(space.globals)
    for whole in whole_model(drawer):
        end = drawer.settle(whole)
        for step in range(first, space.length):
            assert all(space.is_legal(plan) for plan in completed(space, plans, step, end).T)
    for plan in plans.T:
        assert space.is_legal(drawer.settle(moved(drawer.draft(plan), drawer, rng, 3)))


CONFIG = Config(
    model="m", input_shapes={}, device="d1", engine="mace", condition="cold", objective=OBJECTIVES[2],
    kind=Kind.SAMPLER, method="any", settings={}, budget=25, seed=0, seeds=False, hetrl="0",
)  # fmt: skip


# ---- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_cnn(tmp_path_factory.mktemp("models") / "tiny.onnx", size=32))


def search(model: str, sampler: str, folder: Path | None, **more: Any) -> Result:
    return hetrl.search(
        model, "d1", **({"sampler": sampler, "budget": BUDGETS.get(sampler, BUDGET), "seed": 3, "out": folder} | more)
    )


def journal(folder: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
    return optuna.load_study(study_name=None, storage=storage)


def timeless(path: Path) -> list[Mapping[str, Any]]:
    """A journal without its times and without the random names of its writers."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [{k: v for k, v in line.items() if k != "worker_id" and "datetime" not in k} for line in lines]


def trials_of(folder: Path) -> list[Trial]:
    return read_trials(folder / "trials.jsonl")[1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_seed_same_bytes_also_after_a_cut(sampler: str, tiny: str, tmp_path: Path) -> None:
    results = [search(tiny, sampler, tmp_path / name, seeds=False) for name in ("a", "b")]
    a, b = tmp_path / "a", tmp_path / "b"
    assert results[0].agent == sampler
    trials = trials_of(a)
    assert sampler in {t.by for t in trials}
    assert len({t.key for t in trials}) == len(trials) == results[0].evaluations <= BUDGET
    whole = (a / "trials.jsonl").read_bytes()
    draw = random.Random(sampler)
    for at in (None, draw.randrange(2, len(trials)), 0):
        if at is not None:  # a crash that left `at` trials and a torn one
            lines = whole.splitlines(keepends=True)
            (b / "trials.jsonl").write_bytes(b"".join(lines[: 1 + at]) + lines[1 + at][:-9])
            search(tiny, sampler, None, seeds=False, resume=b)
        for name in ("trials.jsonl", "plan.json", "learning_curve.csv"):
            assert (a / name).read_bytes() == (b / name).read_bytes()
        if sampler in OPTUNA:
            assert timeless(a / "optuna.journal") == timeless(b / "optuna.journal")


def test_another_seed_is_another_search(tiny: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        search(tiny, "tpe", tmp_path / str(seed), seeds=False, seed=seed)
    assert (tmp_path / "0/trials.jsonl").read_bytes() != (tmp_path / "1/trials.jsonl").read_bytes()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_failed_measurements_and_budgets(sampler: str, tmp_path: Path) -> None:
    real = open_device("d1", random_graph(4, 6))

    def flaky(plan: Plan, condition: Condition) -> Measurement:
        if len(plan.segments) > 1 and int(plan.key[:4], 16) % 10 < 5:
            return Measurement.failed(Failure.TIMEOUT, "took too long")
        return real.measure(plan, condition)

    problem = Problem.on(MockDevice(real.spec, real.graph, flaky), Condition(), OBJECTIVES[2])
    folder = RunFolder.create(tmp_path)
    result = run_search(
        problem, Search(sampler, BUDGETS.get(sampler, 25), 0, seeds=False, kind=Kind.SAMPLER), folder, CONFIG, Silent()
    )
    check_plan(result.plan, real.graph)
    assert result.frame_drop_rate is not None and result.frame_drop_rate <= 0.05
    assert result.accuracy_drop_pct <= 2.0
    trials = trials_of(tmp_path)
    failed = [t.n for t in trials if t.error]
    assert failed and len(trials) <= 25
    if sampler in OPTUNA:
        told = {t.user_attrs["evaluation"]: t.state for t in journal(tmp_path).trials}
        assert [n for n, state in told.items() if state is TrialState.FAIL] == failed
        assert [n for n, state in told.items() if state is TrialState.COMPLETE] == [
            t.n for t in trials if t.error is None
        ]


@pytest.mark.parametrize("sampler", OPTUNA)
def test_journal_says_what_the_trials_say(sampler: str, tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    search(tiny, sampler, folder, objective=OBJECTIVES[2])
    study, trials = journal(folder), trials_of(folder)
    mirrored = [trials[t.user_attrs["evaluation"]] for t in study.trials]
    assert [t.n for t in mirrored] == sorted({t.n for t in mirrored})
    assert {t.n for t in trials if t.by == sampler} <= {t.n for t in mirrored}
    assert any(t.by != sampler for t in mirrored)  # seeds that the parameters describe
    assert [t.value for t in study.trials] == [t.latency_ms for t in mirrored]
    for told, trial in zip(study.trials, mirrored, strict=True):
        assert told.constraints["accuracy_drop_pct"] == pytest.approx(trial.accuracy_drop_pct - 2.0)
        assert told.constraints["frame_drop_rate"] == pytest.approx((trial.frame_drop_rate or 0.0) - 0.05)
    assert max(study.best_trial.constraints.values()) <= 0


def test_journal_follows_the_trials_after_any_damage(tiny: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    search(tiny, "tpe", whole, seeds=False, budget=14)
    expected = timeless(whole / "optuna.journal")
    path = tmp_path / "run" / "optuna.journal"
    search(tiny, "tpe", path.parent, seeds=False, budget=14)
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    other = lines[5].replace(b'"value":', b'"value":9', 1)  # as if another device had answered
    assert other != lines[5]
    for damaged in (good[:-20], b"".join(lines[:6]), b"", lines[0][:9], b"".join([*lines[:5], other, *lines[6:]])):
        path.write_bytes(damaged)
        search(tiny, "tpe", None, seeds=False, budget=14, resume=path.parent)
        assert timeless(path) == expected
        assert len(journal(path.parent).trials) == 14


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_space_without_more_plans_ends_the_search(sampler: str, tmp_path: Path) -> None:
    path = tmp_path / "one.onnx"
    onnx.save(onnx.parser.parse_model(ONE_POOL), path)
    special = {"random": {"patience": 1, "batch": 1}, "beam": {}, "gp": {"patience": 8, "startup": 10_000}}
    little = special.get(sampler, {"patience": 8})
    result = search(str(path), sampler, None, seeds=False, budget=100_000, settings=little)
    assert 2 <= result.evaluations < 1000


ONE_POOL = """
<ir_version: 8, opset_import: ["" : 17]>
one (float[1,4,8,8] x) => (float[1,4,7,7] y) { y = MaxPool<kernel_shape=[2,2]>(x) }
"""


def test_layers_and_cuts_are_both_searched(tiny: str, tmp_path: Path) -> None:
    for form, first in (("cuts", "cut 1"), ("layers", "placement node_0")):
        search(tiny, "nsga2", tmp_path / form, budget=12, seeds=False, settings={"encoding": form, "population": 4})
        names = set(journal(tmp_path / form).trials[0].params)
        assert any(name.startswith("placement") for name in names)
        assert ("cut 1" in names) == (form == "cuts"), first


def test_a_search_learns_from_the_seeds(tmp_path: Path) -> None:
    seeded = hetrl.search("resnet18", "d1", sampler="annealing", budget=30)
    alone = hetrl.search("resnet18", "d1", sampler="annealing", budget=30, seeds=False)
    assert seeded.gap_to_exact is not None and alone.gap_to_exact is not None
    assert seeded.gap_to_exact < 0.001 < alone.gap_to_exact


def test_annealing_cools_geometrically_and_stays_cold() -> None:
    config = AnnealingConfig(hot=0.1, cold=0.001, cooling=200)
    assert [config.temperature(n) for n in (0, 100, 200, 5000)] == pytest.approx([0.1, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    ("sampler", "settings", "says"),
    [
        ("tpe", {"patience": 0}, "patience is 0, 1 or more makes sense"),
        ("tpe", {"encoding": "words"}, "encoding"),
        ("nsga2", {"population": 1}, "population is 1, 2 or more makes sense"),
        ("gp", {"startup": 0}, "startup is 0, 1 or more makes sense"),
        ("annealing", {"cold": 0.5}, "0 < cold <= hot makes sense"),
        ("beam", {"widest": 2}, "widest is 2, 8 or more makes sense"),
        ("random", {"batch": 0}, "batch is 0, 1 or more makes sense"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    sampler: str, settings: dict[str, Any], says: str, tiny: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=says):
        search(tiny, sampler, tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("sampler", ["cmaes", "gp"])
def test_a_missing_extra_is_named_before_anything_is_written(
    sampler: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna_methods, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"hetrl\[search\]"):
        search(tiny, sampler, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_samplers_get_a_near_name(tiny: str) -> None:
    with pytest.raises(UnknownName, match="did you mean 'nsga2'"):
        search(tiny, "nsgaii2", None)


PLUGIN = """
from hetrl.agents.base import Method, NoSettings
from hetrl.agents.samplers.random_plans import uniform_plans
import numpy as np

def _propose(run, settings):
    run.ledger.outcomes(uniform_plans(run.ledger.space, 3, np.random.default_rng(run.seed)), run.name)

three = Method("three plans", NoSettings, lambda budget: NoSettings(), _propose)
"""


def test_sampler_of_a_third_party(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "three_plans-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: three-plans\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hetrl.samplers]\nthree = three_plans:three\n")
    (info.parent / "three_plans.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(info.parent)
    result = search(tiny, "three", tmp_path / "run", seeds=False)
    assert result.agent == "three"
    assert {t.by for t in trials_of(tmp_path / "run")} == {"reference", "three"}
