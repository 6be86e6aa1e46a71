"""Explanations account for every millisecond, and comparisons say which budget fails and by how much."""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import hetrl
from hetrl.agents.comparison import compared, explained, rows_in_turns
from hetrl.agents.explain import common_ends, explain
from hetrl.agents.infeasible import Tried, broken_words, infeasible
from hetrl.agents.problem import Problem
from hetrl.cli.main import run
from hetrl.condition import Condition, parse_condition
from hetrl.device_bridge.base import MockDevice
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.surrogate.breakdown import Position, breakdown
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.space import PlanSpace
from hetrl.errors import Infeasible, UnknownName, UsageError
from hetrl.explanation import KINDS, NOTHING, Explanation, Spent
from hetrl.objective import Objective
from hetrl.plan import Cap, Memory, Plan
from hetrl.report.explain import spent_table, stretches_table
from tests.surrogate_help import COLD, D1, chain_graph, on_gpu, segments_by_group
from tests.test_exact import random_decisions, random_graph  # type: ignore[import-untyped, unused-ignore]

CPU, GPU = "cpu/mace/fp32", "gpu/mace/fp32"


def device_of(seed: int) -> SurrogateDevice:
    return SurrogateDevice(D1, random_graph(seed, 2 + seed % 6))


def total(told: Explanation, side: str) -> Spent:
    spent = NOTHING
    for stretch in told.stretches:
        spent = spent.plus(getattr(stretch, side) if side == "saved" else getattr(stretch, side).spent)
    return spent


@given(st.integers(0, 10**6), st.sampled_from(["cold", "sigma2,competitors=2", "sigma4", "cold,ui=none"]))
@settings(max_examples=40)
def test_the_stretches_account_for_the_whole_difference(seed: int, condition: str) -> None:
    device, parsed = device_of(seed), parse_condition(condition)
    space = PlanSpace(device, Objective(max_accuracy_drop_pct=3.0))
    taken = random_decisions(space, seed, 2)
    a, b = (space.plan(taken[:, i]) for i in range(2))
    told = explain(("a", a), ("b", b), device, parsed)
    took = {name: device.measure(plan, parsed).latency_ms for name, plan in (("a", a), ("b", b))}
    assert (told.winner_ms, told.against_ms) == (took["a"], took["b"])
    assert total(told, "winner").total_ms == pytest.approx(took["a"], rel=1e-9)
    assert total(told, "against").total_ms == pytest.approx(took["b"], rel=1e-9)
    assert total(told, "saved").total_ms == pytest.approx(told.saved_ms, abs=1e-9 * told.against_ms)
    assert sum(stretch.operators for stretch in told.stretches) == len(device.graph.nodes)
    for stretch in told.stretches:
        for side in (stretch.winner, stretch.against):
            for kind in KINDS:
                value = getattr(side.spent, kind)
                assert value <= 1e-9 if kind == "overlap_ms" else value >= -1e-9, kind
    again = explain(("b", b), ("a", a), device, parsed)
    assert again.saved_ms == -told.saved_ms


def whole(device: SurrogateDevice, **changes: object) -> Plan:
    return msgspec.structs.replace(on_gpu(device, Memory.IMAGE), **changes)


def test_what_a_cap_costs_is_idling() -> None:
    device = SurrogateDevice(D1, chain_graph(6))
    told = explain(("free", whole(device)), ("capped", whole(device, caps=(Cap(GPU, 0.5),))), device, COLD)
    saved = total(told, "saved")
    assert saved.idle_ms == pytest.approx(total(told, "winner").compute_ms)
    assert saved.compute_ms == 0.0
    assert "less idling under a cap" in told.conclusion


def test_crossing_between_processors_is_transfer() -> None:
    device = SurrogateDevice(D1, chain_graph(4, size=16))
    plans = {"cpu": [CPU] * 4, "hops": [CPU, GPU, CPU, CPU]}
    cpu, hops = (segments_by_group(device, placed) for placed in plans.values())
    told = explain(("cpu", cpu), ("hops", hops), device, COLD)
    assert total(told, "winner").transfer_ms == 0.0
    assert total(told, "against").transfer_ms > 0
    assert [stretch.operators for stretch in told.stretches] == [1, 1, 2]


def test_operators_that_ran_elsewhere_are_fallback() -> None:
    graph = hetrl.load_model("regnetx_1_6gf")
    device = SurrogateDevice(hetrl_spec("d1"), graph)
    processors = list(device.engine.processors)
    gpu = next(i for i, p in enumerate(processors) if p.unit == "gpu")
    processors[gpu] = msgspec.structs.replace(processors[gpu], unsupported=("Relu",))
    engine = msgspec.structs.replace(device.engine, processors=tuple(processors))
    spec = msgspec.structs.replace(device.spec, engines={device.engine_name: engine})
    lame = SurrogateDevice(spec, graph)
    plan = on_gpu(lame, Memory.IMAGE)
    fallen = [p for p in breakdown(lame.simulate(plan, COLD)) if p.spent.fallback_ms > 0]
    measured = lame.measure(plan, COLD)
    assert fallen and len(fallen) == len(measured.fallbacks)
    assert sum(p.spent.fallback_ms for p in fallen) == pytest.approx(sum(f.cost_ms for f in measured.fallbacks))
    assert all(p.processors == (CPU,) for p in fallen)


def hetrl_spec(name: str) -> object:
    from hetrl.device_bridge.spec import load_spec

    return load_spec(name)


def positions(groups: Sequence[int], ends: Sequence[bool], may_end: Sequence[bool]) -> list[Position]:
    return [Position(g, (CPU,), e, m, NOTHING) for g, e, m in zip(groups, ends, may_end, strict=True)]


def test_stretches_end_where_both_plans_may_be_cut() -> None:
    one = positions([0, 1, 2, 3], [False, True, False, True], [True, True, True, True])
    chain = positions([0, 1, 2, 3], [False, False, True, True], [False, False, True, True])
    assert common_ends(one, one) == [2, 4]
    assert common_ends(one, chain) == [3, 4]  # not after 1: there the other is inside a shared segment
    turned = positions([0, 2, 1, 3], [True] * 4, [True] * 4)
    assert common_ends(one, turned) == [1, 3, 4]  # not after 2: they have done different groups


@pytest.fixture(scope="module")
def vgg16() -> Problem:
    return Problem.of("vgg16", "d1", engine=None, condition="cold", objective=Objective(), input_shapes=None)


def test_a_comparison_has_bounds_gaps_and_speedups(vgg16: Problem) -> None:
    found = compared(vgg16, rows_in_turns(vgg16, vgg16.candidates), dict(vgg16.candidates))
    assert found.exact_ms == found.bound_ms == vgg16.optimum.latency_ms
    rows = {row.policy: row for row in found.rows}
    assert rows["exact"].gap_to_exact == 0.0
    assert rows["mace_cpu"].speedup_over_single == pytest.approx(1.0)
    assert rows["nn_stretch_cpu_gpu"].gap_to_exact is None  # the bound is on plans that keep the budgets
    assert rows["nn_stretch_cpu_gpu"].breaks == "changes the network, which would have to be trained anew"
    for row in found.rows:
        if row.gap_to_exact is not None:
            assert row.latency_ms == pytest.approx((1 + row.gap_to_exact) * (found.bound_ms or 0.0))
    assert found.winner == "exact" and found.infeasible is None


def test_the_runner_up_is_slower_and_keeps_the_budgets(vgg16: Problem) -> None:
    found = compared(vgg16, rows_in_turns(vgg16, vgg16.candidates), dict(vgg16.candidates))
    plans = dict(vgg16.candidates)
    told = explained(vgg16, found, plans, None)
    assert told is not None and (told.winner, told.saved_ms > 0) == ("exact", True)
    kept = [row.policy for row in found.rows if row.keeps_budgets]
    assert told.against == kept[1]
    assert told.conclusion.startswith(f"exact is {told.saved_ms:.3g} ms")
    faster = explained(vgg16, found, plans, "nn_stretch_cpu_gpu")
    assert faster is not None and faster.saved_ms < 0 and "slower than nn_stretch_cpu_gpu" in faster.conclusion
    with pytest.raises(UnknownName, match="did you mean 'mulayer'"):
        explained(vgg16, found, plans, "mulayr")
    with pytest.raises(UsageError, match="is the winner"):
        explained(vgg16, found, plans, "exact")


def test_a_real_device_has_no_inner_workings(vgg16: Problem) -> None:
    real = MockDevice(vgg16.planner.spec, vgg16.graph, vgg16.planner.measure)
    problem = Problem.on(real, COLD, Objective())
    found = compared(problem, rows_in_turns(problem, problem.candidates), dict(problem.candidates))
    assert found.bound_ms is None and all(row.gap_to_exact is None for row in found.rows)
    with pytest.raises(UsageError, match="does not say where its time goes"):
        explained(problem, found, dict(problem.candidates), None)


def test_the_tables_show_what_matters_and_the_sum(vgg16: Problem) -> None:
    plans = dict(vgg16.candidates)
    told = explain(("exact", plans["exact"]), ("mulayer", plans["mulayer"]), vgg16.planner, COLD)
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as captured:
        console.print(stretches_table(told), spent_table(told))
    lines = captured.get().splitlines()
    everything = next(line for line in lines if line.startswith("all "))
    assert float(everything.split()[1]) == pytest.approx(told.saved_ms, abs=0.005)
    first = max(told.stretches, key=lambda s: abs(s.saved.total_ms))
    body = lines[next(i for i, line in enumerate(lines) if line.startswith("──")) + 1]
    assert body.startswith(first.first)
    assert any(line.startswith("mulayer") and f"{told.against_ms:.2f}" in line for line in lines)


# ---- budgets that nothing keeps ------------------------------------------------------------------------------------


def test_the_error_names_the_budget_and_how_far_off_it_is() -> None:
    tried = [Tried("a", 0.0, 0.5, None), Tried("b", 0.0, 0.12, None), Tried("c", 3.0, 0.0, None)]
    frames = infeasible(tried, Objective(max_frame_drop_rate=0.05))
    assert frames.exit_code == 1
    assert str(frames) == (
        "none of 2 plans that keep the accuracy keeps frame drops at most 5 %: the smoothest (b) drops 12 % of the "
        "frames, 7 points too many; give --max-frame-drop 12, or the UI less work (--condition cold,ui=60hz:4ms)"
    )
    accuracy = infeasible([Tried("a", 3.21, 0.0, None), Tried("b", 5.0, 0.0, None)], Objective(max_accuracy_drop_pct=1))
    assert "the most accurate (a) loses 3.21 points, the limit is 1; give --max-accuracy-drop 3.3" in str(accuracy)
    neither = infeasible([Tried("a", 0.0, None, "needs 600 MB, an app gets 500 MB")], Objective())
    assert "none of 1 plan runs: a: needs 600 MB, an app gets 500 MB" in str(neither)


def test_words_for_what_one_plan_breaks() -> None:
    both = Objective(max_accuracy_drop_pct=1, max_frame_drop_rate=0.05)
    assert broken_words(both, 0.5, 0.05) is None
    assert broken_words(both, 2.0, 0.5) == (
        "loses 2 points of accuracy, the limit is 1 and drops 50 % of the frames, the limit is 5 %"
    )
    assert broken_words(Objective(), 0.0, 1.0) is None


def test_without_an_optimum_the_other_plans_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SurrogateDevice(D1, chain_graph(3))
    problem = Problem(device, device, Condition(), Objective(max_frame_drop_rate=0.0))
    monkeypatch.setitem(vars(problem), "optimum", dataclasses.replace(problem.optimum, schedule=None))
    with pytest.raises(Infeasible, match=r"the exact search found no plan .* but the CPU alone does"):
        problem.optimal_plan()


def test_a_model_too_large_for_the_phone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = msgspec.structs.replace(D1, ram_gb=Quantity(0.5, Source.ASSUMED))
    file = tmp_path / "small.json"
    file.write_bytes(msgspec.json.encode(spec))
    assert run(["compare", "--device", str(file), "--model", "vgg16", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["winner"] is None
    assert err.startswith("error: none of ") and "MB, an app gets 250 MB" in err
    assert np.isfinite(json.loads(out)["rows"][0]["model_size_mb"])
