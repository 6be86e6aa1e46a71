"""The exact optimum: against every plan of small models, and against hand-made and random plans of large ones."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetrl.accuracy import predicted_accuracy_drop_pct
from hetrl.agents import exact as exact_module
from hetrl.agents.exact import Exact, exact
from hetrl.agents.policies import policy_catalog
from hetrl.agents.problem import Problem
from hetrl.agents.rows import measured_row
from hetrl.condition import Condition, Ui, parse_condition
from hetrl.device_bridge.spec import DeviceSpec, load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.tables import engine_options
from hetrl.envs import space as space_module
from hetrl.envs.evaluate import evaluate
from hetrl.envs.space import GRANULARITIES, Granularity, Ints, PlanSpace
from hetrl.errors import Infeasible
from hetrl.graph import OperatorGraph
from hetrl.objective import Objective
from hetrl.plan import Axis
from hetrl.testing.models import UNSUPPORTED, random_decisions, random_graph
from hetrl.zoo.catalog import catalog
from hetrl.zoo.resolve import resolve_model
from tests.surrogate_help import COLD, D1, measured, with_cost

FASTEST = Objective()
SLOW = with_cost(0, {"ms_per_gmac": 80.0}, with_cost(1, {"ms_per_gmac": 40.0}))  # small models make its screen wait
INTER_OP, INTRA_OP = GRANULARITIES.index(Granularity.INTER_OP), GRANULARITIES.index(Granularity.INTRA_OP)
BATCH = 4096


def small_space(
    graph: OperatorGraph, objective: Objective, shares: Sequence[int] = (50,), spec: DeviceSpec = D1
) -> PlanSpace:
    device = SurrogateDevice(spec, graph)
    device.options = engine_options(device.engine, shares)
    return PlanSpace(device, objective)


def all_decisions(space: PlanSpace, fixed: dict[int, int]) -> Ints:
    """Every legal sequence of decisions with some of the global ones fixed, (length, number of sequences)."""
    taken = np.zeros((space.length, 1), dtype=np.int64)
    for step in range(space.length):
        choices, columns = np.nonzero(space.mask(step, taken))
        if step in fixed:
            choices, columns = np.full(taken.shape[1], fixed[step]), np.arange(taken.shape[1])
        taken = taken[:, columns]
        taken[step] = choices
    return taken


def outcomes(space: PlanSpace, taken: Ints, condition: Condition = COLD) -> tuple[np.ndarray, np.ndarray]:
    """Latencies and frame drop rates."""
    parts = np.array_split(taken, max(1, taken.shape[1] // BATCH), axis=1)
    found = [evaluate(space, space.device, condition, part) for part in parts]
    return np.concatenate([f.latency_ms for f in found]), np.concatenate([f.frame_drop_rate for f in found])


def fastest_ms(space: PlanSpace, taken: Ints) -> float:
    return float(np.nanmin(outcomes(space, taken)[0]))


def fixed_but(space: PlanSpace, *free: str) -> dict[int, int]:
    """All global decisions at their first choice, the granularity at `intra_op`, but for those named."""
    first = {i: 0 for i, decision in enumerate(space.globals) if decision.name not in free}
    return first | ({0: INTRA_OP} if "granularity" not in free else {})


def everything_of(space: PlanSpace, *free: str) -> Ints:
    """Every plan of a space with some global decisions left free, branches one after the other and side by side."""
    fixed = fixed_but(space, *free)
    serial = all_decisions(space, fixed)
    return np.hstack([serial, all_decisions(space, fixed | {0: INTER_OP})]) if space.branches else serial


def check_best(best: Exact, fastest_ms: float, space: PlanSpace) -> None:
    """Exact is the fastest."""
    assert best.bound_ms <= fastest_ms * (1 + 1e-9)
    assert best.proven
    assert best.latency_ms == pytest.approx(fastest_ms, rel=1e-9 if space.branches else 1e-12)


def graphs(layers: int, groups: range, seeds: range) -> list[OperatorGraph]:
    """Random models of a size at which the CPU, the GPU, or both together are best."""
    found = (random_graph(seed, layers, size=(20, 96, 192)[seed % 3]) for seed in seeds)
    return [graph for graph in found if len(graph.groups) in groups]


def test_exact_is_the_best_of_all_plans_of_small_models() -> None:
    tried = [*graphs(3, range(2, 6), range(40)), *graphs(5, range(4, 6), range(100, 130))]
    tried += [random_graph(seed, 4, size=192, unsupported=False) for seed in (801, 802, 803, 807)]  # for long chains
    plans, overlapping, placements = 0, 0, set()
    for number, graph in enumerate(tried):
        space = small_space(graph, FASTEST, spec=(D1, SLOW)[number % 2 or number >= len(tried) - 4])
        everything = everything_of(space, "memory")
        plans += everything.shape[1]
        best = exact(space, FASTEST, COLD)
        assert best.schedule is not None
        check_best(best, fastest_ms(space, everything), space)
        overlapping += best.schedule.overlap
        for placed in best.schedule.segments:
            option = space.options[placed.option]
            placements.add((option.processors, option.axis, option.split and placed.start < placed.end))
    assert len(tried) >= 50 and plans > 30_000
    assert overlapping >= 2
    # Among these models and their optima is everything that could go wrong.
    reads = [[i.tensor for group in graph.groups for i in group.inputs] for graph in tried]
    assert sum(len(set(tensors)) < len(tensors) for tensors in reads) >= 8  # forks
    assert sum(len(group.inputs) > 1 for graph in tried for group in graph.groups) >= 8  # joins
    assert {n.op_type for g in tried for n in g.nodes} >= {UNSUPPORTED, "Conv", "Concat", "Add", "MaxPool"}
    assert {((0,), Axis.NONE, False), ((1,), Axis.NONE, False)} <= placements
    assert {
        ((1, 0), Axis.OUTPUT_CHANNELS, False),
        ((1, 0), Axis.HEIGHT, False),
        ((1, 0), Axis.HEIGHT, True),
    } <= placements


def test_exact_agrees_with_brute_force_on_200_random_models() -> None:
    """Splits, forks, joins, unsupported operators, caps and an accuracy budget among them."""
    found, branches, overlapping, split = 0, 0, 0, 0
    for graph in graphs(3, range(2, 5), range(2001, 2260)):
        objective = Objective(max_accuracy_drop_pct=2.0 if found % 4 == 3 else 0.0)
        space = small_space(graph, objective, spec=(D1, SLOW)[found % 2])
        free = ["memory", "compression"] + (["cap gpu/mace/fp32"] if space.groups == 2 else [])
        best = exact(space, objective, COLD)
        assert best.schedule is not None
        check_best(best, fastest_ms(space, everything_of(space, *free)), space)
        found, branches = found + 1, branches + space.branches
        overlapping += best.schedule.overlap
        split += any(space.options[placed.option].split for placed in best.schedule.segments)
        if found == 200:
            break
    assert found == 200 and branches > 50 and overlapping > 20 and split > 20


def test_no_global_decision_beats_exact_either() -> None:
    for graph in graphs(2, range(2, 3), range(300, 312)):
        space = small_space(graph, FASTEST)
        everything = all_decisions(space, {})
        assert everything.shape[1] >= 1536
        check_best(exact(space, FASTEST, COLD), fastest_ms(space, everything), space)


def test_exact_is_the_best_of_all_plans_at_several_shares() -> None:
    for graph in graphs(3, range(3, 5), range(400, 412)):
        space = small_space(graph, FASTEST, (20, 50, 70))
        check_best(exact(space, FASTEST, COLD), fastest_ms(space, everything_of(space, "memory")), space)


def test_exact_prunes_as_far_as_the_budget_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    for graph in graphs(3, range(2, 5), range(500, 512)):
        for points in (0.6, 5.0):
            budget = Objective(max_accuracy_drop_pct=points)
            best = exact(small_space(graph, budget), budget, COLD)
            offered = small_space(graph, budget).compressions
            assert all(predicted_accuracy_drop_pct(one.ratios) <= points for one in offered)
            fastest = []
            for one in offered:  # a space of one compression holds all that is possible with it
                with monkeypatch.context() as patched:
                    patched.setattr(space_module, "compressions", lambda *_, one=one: (one,))
                    space = small_space(graph, budget)
                    fastest.append(fastest_ms(space, everything_of(space, "memory")))
            assert best.compression in offered
            most = max(most, len(offered))
            check_best(best, min(fastest), space)
    assert most > 1


def test_a_frame_limit_is_kept_and_its_bound_holds() -> None:
    condition = Condition(ui=Ui(60, 8))
    better_than_bound = 0
    for graph in graphs(3, range(2, 4), range(600, 612)):
        space = small_space(graph, FASTEST, spec=SLOW)
        everything = everything_of(space, "memory", "queue_window", "cap gpu/mace/fp32")
        latencies, drops = outcomes(space, everything, condition)
        free = exact(space, FASTEST, condition).latency_ms
        for limit in (0.0, 0.02, 0.3):
            objective = Objective(max_frame_drop_rate=limit)
            best = exact(space, objective, condition)
            assert best.schedule is not None  # the CPU alone drops no frame
            assert free <= best.latency_ms * (1 + 1e-12)
            fastest = latencies[drops <= limit].min()
            assert best.bound_ms <= fastest * (1 + 1e-12) and best.bound_ms <= best.latency_ms
            if best.proven:
                assert best.latency_ms <= fastest * (1 + 1e-12)
            plan = Problem(space.device, space.device, condition, objective).optimal_plan()
            answer = measured(space.device, plan, condition)
            assert answer.latency_ms == best.latency_ms
            assert (answer.frame_drop_rate or 0.0) <= limit
            better_than_bound += best.latency_ms > best.bound_ms * (1 + 1e-9)
    assert better_than_bound  # the limit mattered somewhere


def test_without_a_ui_no_frame_limit_binds() -> None:
    space = small_space(random_graph(601, 3), FASTEST)
    none = Condition(ui=None)
    limited = exact(space, Objective(max_frame_drop_rate=0.0), none)
    assert limited == exact(space, FASTEST, none)


def test_a_narrow_beam_still_gives_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    unproven = 0
    for graph in graphs(9, range(6, 12), range(700, 725)):
        space = small_space(graph, FASTEST)
        true = exact(space, FASTEST, COLD)
        assert true.proven
        with monkeypatch.context() as patched:
            patched.setattr(exact_module, "BEAM", 1)
            narrow = exact(space, FASTEST, COLD)
        assert narrow.bound_ms <= true.latency_ms * (1 + 1e-12)
        assert true.bound_ms <= narrow.latency_ms * (1 + 1e-12)
        unproven += not narrow.proven
    assert unproven


ZOO = ("resnet18", "vgg16")


@pytest.fixture(scope="module", params=ZOO)
def problem(request: pytest.FixtureRequest) -> Problem:
    device = SurrogateDevice(D1, resolve_model(request.param))
    return Problem(device, device, COLD, FASTEST)


@pytest.mark.parametrize("name", [entry.name for entry in catalog()])
def test_exact_of_the_zoo_is_proven_quickly(name: str) -> None:
    device = SurrogateDevice(D1, resolve_model(name))
    problem = Problem(device, device, COLD, FASTEST)
    space = problem.space
    begin = time.process_time()
    best: Exact = exact(space, FASTEST, COLD)
    assert time.process_time() - begin < 2.0  # well below a second on an idle machine
    assert best.proven
    assert measured(device, problem.optimal_plan()).latency_ms == best.latency_ms


def test_hot_branches_side_by_side_are_proven() -> None:
    """The GPU is throttled to the CPU's speed, so that sharing the pyramid's branches pays, and is hard to prove."""
    space = PlanSpace(SurrogateDevice(load_spec("d6"), resolve_model("retinaface")), FASTEST)
    hot = parse_condition("sigma2")
    best = exact(space, FASTEST, hot)
    assert best.proven and best.schedule is not None and best.schedule.overlap
    assert best.latency_ms < exact_module.additive(space, FASTEST, hot).latency_ms


def test_no_hand_policy_beats_exact(problem: Problem) -> None:
    plans = dict(problem.hand_plans())
    assert set(plans) == {policy.id for policy in policy_catalog() if policy.applies(problem.planner)}
    for name, plan in plans.items():
        row = measured_row(name, plan, problem)
        assert row.latency_ms is not None
        assert not row.keeps_budgets or row.latency_ms >= problem.optimum.latency_ms * (1 - 1e-12), name


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=4)
def test_no_random_plan_beats_exact(problem: Problem, seed: int) -> None:
    taken = random_decisions(problem.space, seed, 300)
    assert fastest_ms(problem.space, taken) >= problem.optimum.latency_ms * (1 - 1e-12)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=4)
def test_no_plan_next_to_exact_beats_it(problem: Problem, seed: int) -> None:
    """Each group of the optimum decided anew, one at a time, the rest as it was where that stays legal."""
    own = problem.space.encode(problem.optimal_plan())
    assert own is not None
    draw = np.random.default_rng(seed)
    space, first = problem.space, len(problem.space.globals)
    taken = np.repeat(own[:, None], 200, axis=1)
    taken[0] = INTRA_OP
    changed = draw.integers(first, space.length, size=200)
    for step in range(first, space.length):
        legal = space.mask(step, taken)
        anew = np.where(legal, draw.random(legal.shape), 0).argmax(axis=0)
        keep = legal[taken[step], np.arange(200)] & (changed != step)
        taken[step] = np.where(keep, taken[step], anew)
    found, optimum = fastest_ms(space, taken), problem.optimum.latency_ms
    assert optimum * (1 - 1e-12) <= found <= optimum * 1.2  # they really were next to it


def test_an_impossible_frame_limit_is_infeasible(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SurrogateDevice(D1, resolve_model("vgg16"))
    limited = Problem(device, device, COLD, Objective(max_frame_drop_rate=0.0))
    assert limited.optimal_plan() is not None
    empty = Problem(device, device, COLD, Objective(max_frame_drop_rate=0.0))
    monkeypatch.setitem(vars(empty), "optimum", Exact(None, 0.0, np.inf, 1.0))
    with pytest.raises(Infeasible, match="frame"):
        empty.optimal_plan()


@given(st.integers(0, 10**6))
@settings(max_examples=25)
def test_plans_and_decisions_say_the_same(seed: int) -> None:
    budget = Objective(max_accuracy_drop_pct=1.0)
    space = PlanSpace(SurrogateDevice(D1, random_graph(seed, 1 + seed % 7)), budget)
    taken = random_decisions(space, seed, 20)
    same = space.canonical(taken)
    plans = [space.plan(taken[:, b]) for b in range(20)]
    for b, plan in enumerate(plans):
        found = space.encode(plan)
        assert found is not None and np.array_equal(found, same[:, b])
        assert space.plan(same[:, b]).key == plan.key
    assert len({plan.key for plan in plans}) == len({tuple(column) for column in same.T.tolist()})
