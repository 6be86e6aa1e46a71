"""Planning in the `tflite` and `ncnn` engine sets: several accelerators, no splits, int8 at a price of accuracy."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hetrl
from hetrl.accuracy import INT8, INT8_DROP_PCT, PREDICTED_DROPS, plan_accuracy_drop_pct, predicted_accuracy_drop_pct
from hetrl.agents.exact import Exact, exact
from hetrl.agents.ledger import Ledger
from hetrl.agents.problem import Problem
from hetrl.agents.rows import row_of
from hetrl.calibration.engine_sets import engine_sets
from hetrl.compression import Compression
from hetrl.condition import parse_condition
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import DeviceSpec, Known, Link, Processor, builtin_names, load_spec
from hetrl.device_bridge.surrogate.cost_model import HOST_HOME
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule, batch_of
from hetrl.device_bridge.surrogate.tables import GROUPED_CONV, MEMORIES
from hetrl.envs.compressions import RATIOS
from hetrl.envs.evaluate import evaluate
from hetrl.envs.partition import PartitionEnv
from hetrl.envs.setting import Setting
from hetrl.envs.space import GRANULARITIES, Granularity, PlanSpace
from hetrl.graph import OperatorGraph
from hetrl.objective import Objective
from hetrl.plan import Evidence, Memory
from hetrl.testing.models import UNSUPPORTED, random_decisions, random_graph
from hetrl.zoo.resolve import resolve_model
from tests.surrogate_help import COLD, chain_graph, measured, segments_by_group
from tests.tiny_models import save_tiny_cnn

CPU, GPU, DSP, NPU = "cpu/tflite/fp32", "gpu/tflite/fp16", "dsp/tflite/int8", "npu/tflite/fp16"
PHONES = [name for name in builtin_names() if name.startswith("d")]


def scaled(thing: Processor | Link, factor: float) -> Processor | Link:
    """A processor or a link whose times are `factor` times as long."""

    def times(quantity: Quantity) -> Quantity:
        return Quantity(quantity.value * factor, Source.ASSUMED)

    if isinstance(thing, Link):
        return msgspec.structs.replace(thing, sync_ms=times(thing.sync_ms))
    fields = {name: times(getattr(thing.cost, name)) for name in thing.cost.__struct_fields__}
    return msgspec.structs.replace(thing, cost=msgspec.structs.replace(thing.cost, **fields))


def phone(units: str = "cpu gpu dsp npu", seed: int | None = None) -> DeviceSpec:
    """d3's TFLite processors and d5's NPU, those of the units; with a seed at other speeds."""
    spec, other = load_spec("d3"), load_spec("d5").engine("tflite")
    own = spec.engine("tflite")
    processors = [p for p in (*own.processors, *other.processors[2:]) if p.unit in units.split()]
    processors[1:] = [msgspec.structs.replace(p, unsupported=(*p.unsupported, UNSUPPORTED)) for p in processors[1:]]
    names = {p.id for p in processors}
    links = [link for link in (*own.links, *other.links[1:]) if link.accelerator in names]
    if seed is not None:
        draw = np.random.default_rng(seed)
        processors = [scaled(p, 10 ** draw.uniform(-0.5, 0.5)) for p in processors]
        links = [scaled(link, 10 ** draw.uniform(-3, -1)) for link in links]
    engine = msgspec.structs.replace(own, processors=tuple(processors), links=tuple(links))
    return msgspec.structs.replace(spec, default_engine="tflite", engines={"tflite": engine})


def space_of(graph: OperatorGraph, points: float, spec: DeviceSpec) -> PlanSpace:
    return PlanSpace(SurrogateDevice(spec, graph), Objective(max_accuracy_drop_pct=points))


def brute_force_ms(space: PlanSpace, points: float) -> float:
    """The fastest of all placements with all compressions that keep the accuracy budget; masks are not asked."""
    int8 = [p.precision == INT8 for p in space.engine.processors]
    choices = list(product(range(len(int8)), repeat=space.groups))
    best = np.inf
    for one in dict.fromkeys([*map(Compression, (0.0, *RATIOS)), *space.compressions]):
        drops = [PREDICTED_DROPS.drop_pct(one, int8=any(int8[p] for p in c)) for c in choices]
        kept = [c for c, drop in zip(choices, drops, strict=True) if drop <= points]
        if kept:
            placed = [tuple(Placed(k, k, p, Memory.BUFFER) for k, p in enumerate(c)) for c in kept]
            schedules = [Schedule(p, overlap=o) for p in placed for o in {False, space.branches}]
            batch = batch_of(schedules, space.groups, len(int8))
            best = min(best, float(space.device.cost_model(one).evaluate(batch, None).latency_ms.min()))
    return best


def used(space: PlanSpace, found: Exact) -> set[str]:
    assert found.schedule is not None
    return {
        space.engine.processors[p].unit for s in found.schedule.segments for p in space.options[s.option].processors
    }


def test_exact_is_the_best_of_all_plans_with_and_without_a_budget_for_int8() -> None:
    together: dict[float, list[set[str]]] = {}
    proven = 0
    for seed in range(160):
        graph = random_graph(seed, 2 + seed % 4, size=(20, 48, 96)[seed % 3])
        if not 2 <= len(graph.groups) <= 5:
            continue
        points = (0.0, 0.6, INT8_DROP_PCT, 1.35, 4.0)[seed % 5]
        space = space_of(graph, points, phone(("cpu gpu dsp", "cpu gpu dsp npu")[seed % 2], seed))
        best = exact(space, Objective(max_accuracy_drop_pct=points), COLD)
        fastest = brute_force_ms(space, points)
        assert best.bound_ms <= fastest * (1 + 1e-9)
        assert best.proven or space.branches  # of several copies the solver assumes the nearest
        assert fastest * (1 - 1e-9) <= best.latency_ms <= fastest * (1 + 1e-5 if best.proven else 1.05)
        proven += best.proven
        together.setdefault(points, []).append(used(space, best))
    count = sum(map(len, together.values()))
    assert count >= 80 and proven >= 0.95 * count, proven
    for points, found in together.items():
        assert any("dsp" in units for units in found) == (points >= INT8_DROP_PCT)
        assert any(len(units) > 1 for units in found)
    assert any(len(units) >= 3 for found in together.values() for units in found)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.6, 0.8, 1.0, 1.35, 2.5, 3.0, 6.0]))
@settings(max_examples=60)
def test_no_plan_over_the_accuracy_budget_is_ever_legal(seed: int, points: float) -> None:
    space = space_of(random_graph(seed % 50, 2 + seed % 8), points, phone(seed=seed % 7))
    taken = random_decisions(space, seed, 40)
    outcomes = evaluate(space, space.device, COLD, taken)
    assert np.isfinite(outcomes.latency_ms).all()
    assert (outcomes.accuracy_drop_pct <= points).all()
    first = len(space.globals)
    for b in range(40):
        column = taken[:, b]
        assert space.is_legal(column)
        plan = space.plan(column)
        assert plan_accuracy_drop_pct(plan) == outcomes.accuracy_drop_pct[b]
        encoded = space.encode(plan)
        assert encoded is not None and np.array_equal(encoded, space.canonical(column[:, None])[:, 0])
        # The same plan with one more segment on the DSP is legal only where the price can be paid.
        worse = column.copy()
        worse[0] = GRANULARITIES.index(Granularity.INTRA_OP)
        worse[first + seed % space.groups] = 1 + 2
        dear = PREDICTED_DROPS.drop_pct(plan.compression, int8=True) > points
        assert not (dear and space.is_legal(worse))


def alike(one: Compression) -> bool:
    """Whether it prunes all stages alike, and does nothing else."""
    return len(one.ratios) == 1 and not one.low_rank


def test_int8_is_open_where_its_price_fits_beside_the_pruning() -> None:
    graph = chain_graph(3, channels=40)
    for points, free in ((0.0, []), (0.79, []), (INT8_DROP_PCT, [0.0]), (1.4, [0.0, 0.1]), (3.0, [0.0, 0.1, 0.2])):
        space = space_of(graph, points, phone())
        dsp = [p.unit for p in space.engine.processors].index("dsp")
        assert [c.prune_ratio for c in space.compressions if alike(c) and space.possible_at(c)[:, dsp].all()] == free
        assert all(space.possible_at(c)[:, :dsp].all() for c in space.compressions)
    whole = segments_by_group(SurrogateDevice(phone(), graph), [DSP] * 3)
    assert space_of(graph, 0.0, phone()).encode(whole) is None
    assert space_of(graph, 1.0, phone()).encode(whole) is not None


def test_the_price_of_int8_is_paid_once_and_said_everywhere() -> None:
    device = SurrogateDevice(phone(), chain_graph(3))
    objective = Objective(max_accuracy_drop_pct=1.0)
    for names, price in (([CPU] * 3, 0.0), ([CPU, DSP, GPU], INT8_DROP_PCT), ([DSP] * 3, INT8_DROP_PCT)):
        plan = segments_by_group(device, names)
        row = row_of("x", plan, measured(device, plan), Setting.on(device, COLD, Objective()))
        assert row.accuracy_drop_pct == price and row.keeps_budgets == (price == 0)
        for space in (PlanSpace(device, objective), PlanSpace(device, Objective())):  # within the space, and outside
            ledger = Ledger(space, device, COLD, objective, 5)
            assert ledger.measure(plan, "x").accuracy_drop_pct == price
    assert INT8_DROP_PCT == pytest.approx(78.0 - 77.2)
    pruned = predicted_accuracy_drop_pct(0.3)
    assert predicted_accuracy_drop_pct(0.3, int8=True) == pytest.approx(pruned + INT8_DROP_PCT)


def test_an_agent_without_masks_is_kept_off_the_dsp(tmp_path: Path) -> None:
    tiny = str(save_tiny_cnn(tmp_path / "tiny.onnx"))
    for points, repaired in ((0.0, True), (1.0, False)):
        env = PartitionEnv("d3", tiny, engine="tflite", max_accuracy_drop_pct=points)
        env.reset(seed=0)
        space = env.core.space
        for _ in space.globals:
            env.step(0)
        assert env.action_masks()[1 + 2] == (not repaired)
        assert env.step(1 + 2)[4].get("repaired", False) == repaired


@pytest.mark.parametrize("engine", ["tflite", "ncnn"])
@pytest.mark.parametrize("name", PHONES)
def test_every_phone_plans_in_both_engine_sets(name: str, engine: str) -> None:
    for model, points in product(("resnet18", "regnetx_1_6gf"), (0.0, 2.0)):
        objective = Objective(max_accuracy_drop_pct=points)
        problem = Problem.of(model, name, engine=engine, condition="cold", objective=objective, input_shapes=None)
        best = problem.optimum
        assert best.proven
        plans = dict(problem.hand_plans())
        units = {p.unit for p in problem.planner.engine.processors}
        own = {"ncnn_default", "ncnn_gpu"} if engine == "ncnn" else {f"{engine}_{unit}" for unit in units}
        assert {i for i in plans if i.startswith(("mace", "tflite", "ncnn"))} == own
        ledger = Ledger(problem.space, problem.device, COLD, objective, 100)
        optimum = ledger.measure(problem.optimal_plan(), "exact")
        assert optimum.latency_ms == pytest.approx(best.latency_ms) and ledger.keeps(optimum)
        for policy, plan in plans.items():
            trial = ledger.measure(plan, policy)
            assert ledger.keeps(trial) == (plan_accuracy_drop_pct(plan) <= points and not plan.stretched)
            assert not ledger.keeps(trial) or (trial.latency_ms or 0) >= best.latency_ms * (1 - 1e-12)


def test_the_best_hand_needs_nothing_that_the_run_forbids() -> None:
    hands = {}
    for points in (0.0, 2.0):
        result = hetrl.tune(
            "resnet18", "d3", engine="tflite", budget=12, objective=Objective(max_accuracy_drop_pct=points)
        )
        rows = {row.policy: row for row in result.rows}
        assert rows["tflite_dsp"].keeps_budgets == (points > 0)
        assert result.accuracy_drop_pct <= points and result.gap_to_exact == pytest.approx(0.0, abs=1e-9)
        assert result.best_hand is not None
        hands[points] = result.best_hand.policy
    assert hands == {0.0: "tflite_gpu", 2.0: "tflite_dsp"}


def test_what_an_older_dsp_refuses_falls_back_with_reason_and_cost() -> None:
    row = hetrl.measure("regnetx_1_6gf", "d3", engine="tflite", policy="tflite_dsp")
    graph = resolve_model("regnetx_1_6gf")
    grouped = [g for g in range(len(graph.groups)) if graph.group_geometry(g).groups > 1]
    assert {f.node for f in row.fallbacks} == {graph.group_node_ids(g)[0] for g in grouped} and len(grouped) == 18
    for fallback in row.fallbacks:
        assert fallback.cost_ms > 0
        assert "groups is not supported by dsp/tflite/int8" in fallback.reason
    assert not hetrl.measure("regnetx_1_6gf", "d4", engine="tflite", policy="tflite_dsp").fallbacks
    refusing = {name for name in PHONES for p in load_spec(name).engine("tflite").processors
                if GROUPED_CONV in p.unsupported}  # fmt: skip
    assert refusing == {"d1", "d3", "d7"}


def test_tensors_go_from_one_accelerator_to_another_through_host_memory() -> None:
    device = SurrogateDevice(phone(), chain_graph(3))
    model = device.cost_model()
    (tensor,) = device.cost_model().tables.workload.items[0].writes
    buffer = MEMORIES.index(Memory.BUFFER)
    homes = {p.unit: int(model.home_of[i, buffer]) for i, p in enumerate(device.engine.processors)}
    assert homes["cpu"] == HOST_HOME and len(set(homes.values())) == 4
    ways = model.conversion_ms[tensor]
    for a, b in product(("gpu", "dsp", "npu"), repeat=2):
        through = ways[1 << homes[a], HOST_HOME] + ways[1 << HOST_HOME, homes[b]]
        assert ways[1 << homes[a], homes[b]] == pytest.approx(0.0 if a == b else through)
        assert through > 0
    took = measured(device, segments_by_group(device, [CPU, GPU, DSP])).segments
    assert took[1].transfer_ms > 0 and took[2].transfer_ms > took[1].transfer_ms
    out_of_the_gpu = next(link.sync_ms.value for link in device.engine.links if link.accelerator == GPU)
    assert took[2].transfer_ms >= out_of_the_gpu


def test_only_the_gpu_makes_the_screen_wait_and_its_queue_window_matters_there() -> None:
    device = SurrogateDevice(phone(), chain_graph(12, size=224, channels=128))
    condition = parse_condition("cold,ui=120hz:6ms")
    space = PlanSpace(device, Objective(max_accuracy_drop_pct=1.0))
    rates = {}
    for name, window in product((GPU, DSP, NPU), (None, 1)):
        plan = msgspec.structs.replace(segments_by_group(device, [name] * 12), queue_window=window)
        answer = measured(device, plan, condition)
        taken = space.encode(plan)
        assert taken is not None
        found = evaluate(space, device, condition, taken[:, None])
        assert found.frame_drop_rate[0] == answer.frame_drop_rate
        rates[name, window] = answer.frame_drop_rate
    assert rates[DSP, None] == rates[NPU, None] == 0
    assert 0 < rates[GPU, 1] < rates[GPU, None]


def test_no_network_is_called_calibrated_by_fits_to_dozens_of_networks() -> None:
    for name in PHONES:
        for engine in engine_sets(name).values():
            assert not engine.calibrated_models and not engine.seen_models


def test_only_a_phones_own_silicon_is_called_fitted() -> None:
    cpu = {name: engine_sets(name)["ncnn"].processors[0].cost.launch_ms for name in PHONES}
    assert [name for name in PHONES if cpu[name].source is Source.FITTED] == ["d4"]
    assert cpu["d6"].source is Source.SCALED and "kirin970" in cpu["d6"].note


def test_a_known_network_without_errors_of_its_own_has_those_of_unseen_ones() -> None:
    spec, graph = load_spec("d3"), chain_graph(3)
    own = spec.engine("ncnn")
    told = msgspec.structs.replace(own, calibrated_models=(graph.structure_hash,))
    answers = []
    for engine in (own, told):
        device = SurrogateDevice(msgspec.structs.replace(spec, engines={"ncnn": engine}, default_engine="ncnn"), graph)
        answers.append(measured(device, segments_by_group(device, ["cpu/ncnn/fp16"] * 3)))
    assert set(told.errors) <= {Known.UNSEEN, Known.SHIFTED}
    assert answers[0].latency_interval_ms == answers[1].latency_interval_ms != None  # noqa: E711
    assert [a.evidence for a in answers] == [Evidence.PREDICTED, Evidence.CALIBRATED]
