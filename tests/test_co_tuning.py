"""Compression chosen together with placement: what is offered, what it costs, what is made."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hetrl
from hetrl.agents.exact import exact
from hetrl.cli.main import run
from hetrl.compress.planned import compressed_graph, shares_gone
from hetrl.compress.variant import compressed_model
from hetrl.compression import NO_COMPRESSION, Compression, parse_compression
from hetrl.condition import Condition
from hetrl.device_bridge.base import Device
from hetrl.device_bridge.registry import open_device
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.conditions import COLD
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs import compressions as offers
from hetrl.envs.compressions import LOW_RANKS, MOST_TRIED, RATIOS, compressions
from hetrl.envs.evaluate import evaluate
from hetrl.envs.space import PlanSpace
from hetrl.errors import PlanError
from hetrl.graph import OperatorGraph
from hetrl.graph.reader import graph_from_model
from hetrl.objective import Objective
from hetrl.plan import Evidence, Part, Plan, Segment, decode_plan, encode_plan
from hetrl.scoring.measured_drops import Evaluation, MeasuredDrops, measured_drops
from hetrl.testing.devices import whole_model_plans
from hetrl.testing.models import random_decisions
from hetrl.zoo.resolve import resolve_model
from hetrl.zoo.source import source_of
from tests.digits import Digits
from tests.host_help import HOST_ERROR, quick_host

FIVE = Objective(max_accuracy_drop_pct=5.0)


def on_d1(graph: OperatorGraph) -> SurrogateDevice:
    return SurrogateDevice(load_spec("d1"), graph)


@pytest.fixture(scope="module")
def resnet18() -> SurrogateDevice:
    return on_d1(resolve_model("resnet18"))


def test_what_is_offered_keeps_the_budget_and_differs(resnet18: SurrogateDevice) -> None:
    space = PlanSpace(resnet18, FIVE)
    graph, offered = resnet18.graph, space.compressions
    assert offered[0] == NO_COMPRESSION and Compression(0.3) in offered and Compression(0.4) not in offered
    by_stage = [one for one in offered if len(one.ratios) > 1]
    low_rank = [one for one in offered if one.low_rank]
    assert 1 <= len(by_stage) <= MOST_TRIED + len(LOW_RANKS) and len(low_rank) >= 2
    assert all(space.drops.drop_pct(one) <= 5.0 for one in offered)
    shapes = [tuple(node.weight_elements for node in compressed_graph(graph, one).nodes) for one in offered]
    assert len(set(shapes)) == len(offered)
    assert PlanSpace(resnet18, Objective()).compressions == (NO_COMPRESSION,)


def test_ratios_by_stage_beat_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    device = on_d1(resolve_model("yolov2"))
    best = exact(PlanSpace(device, FIVE), FIVE, COLD)
    monkeypatch.setattr(offers, "MOST_TRIED", 0)
    uniform = exact(PlanSpace(device, FIVE), FIVE, COLD)
    assert len(uniform.compression.ratios) == 1 < len(best.compression.ratios)
    assert best.latency_ms < 0.9 * uniform.latency_ms


def test_decisions_and_plans_say_the_same(resnet18: SurrogateDevice) -> None:
    space = PlanSpace(resnet18, FIVE)
    taken = random_decisions(space, 0, 60)
    outcomes = evaluate(space, resnet18, COLD, taken)
    seen = set()
    for column, latency_ms, drop_pct in zip(taken.T, outcomes.latency_ms, outcomes.accuracy_drop_pct, strict=True):
        plan = decode_plan(encode_plan(space.plan(column)))
        seen.add(plan.compression)
        alone = resnet18.measure(plan, COLD)
        assert alone.latency_ms == latency_ms and space.drops.of_plan(plan) == drop_pct
        encoded = space.encode(plan)
        assert encoded is not None and np.array_equal(encoded, space.canonical(column[:, None])[:, 0])
        factored = {node.id for node in compressed_graph(resnet18.graph, plan.compression).nodes if node.front}
        assert not any(len(segment.parts) > 1 and factored.intersection(segment.nodes) for segment in plan.segments)
    assert len(seen) == len(space.compressions)


@pytest.mark.parametrize("words", ["low-rank=0.5", "prune=0.3,low-rank=0.4", "prune=0/0.5/0.25/0.5,multiple=8"])
def test_what_is_planned_is_what_is_made(words: str) -> None:
    graph, one = resolve_model("resnet18"), parse_compression(words)
    planned = compressed_graph(graph, one)
    made = graph_from_model(compressed_model(source_of(graph, builtin_seed=0), graph, one), name="made")
    assert (planned.macs, planned.parameters, planned.weight_bytes) == (made.macs, made.parameters, made.weight_bytes)
    assert len(planned.groups) == len(graph.groups) and planned.structure_hash == graph.structure_hash
    factors = sum(node.front is not None for node in planned.nodes)
    assert len(made.nodes) == len(graph.nodes) + factors and (factors > 0) == bool(one.low_rank)


def test_two_operators_of_low_rank_cost_what_they_cost_apart() -> None:
    graph, one = resolve_model("resnet18"), Compression(low_rank=0.5)
    made = on_d1(graph_from_model(compressed_model(source_of(graph, builtin_seed=0), graph, one), name="made"))
    device = on_d1(graph)  # a residual sum may be fused with another operator, hence the tolerance
    for plan, same in zip(whole_model_plans(device), whole_model_plans(made), strict=True):
        together = device.measure(msgspec.structs.replace(plan, compression=one), COLD)
        assert together.evidence is Evidence.PREDICTED
        factors = device.engine.group_factors.get(graph.structure_hash)
        if factors is None:
            assert together.latency_ms == pytest.approx(
                made.measure(same, COLD).latency_ms, rel=2e-3
            )  # another operator may take a residual sum


def test_a_factored_operator_is_not_shared(resnet18: SurrogateDevice) -> None:
    tables = resnet18.cost_model(Compression(low_rank=0.5)).tables
    single = np.array([not option.split for option in tables.options])
    graph = compressed_graph(resnet18.graph, Compression(low_rank=0.5))
    factored = [graph.group_front(group) is not None for group in range(len(graph.groups))]
    assert any(factored) and not tables.possible[factored][:, ~single].any()
    assert tables.possible[factored][:, single].any() and tables.possible[:, ~single].any()


def test_a_wrong_number_of_stages_fails_as_a_plan_error(resnet18: SurrogateDevice) -> None:
    plan = whole_model_plans(resnet18)[0]
    wrong = msgspec.structs.replace(plan, compression=Compression.of((0.1, 0.2)))
    with pytest.raises(PlanError, match="4 stages"):
        resnet18.measure(wrong, COLD)


def test_the_multiple_is_the_devices() -> None:
    spec = msgspec.structs.replace(load_spec("d1"), channel_multiple=16)
    space = PlanSpace(SurrogateDevice(spec, resolve_model("resnet18")), FIVE)
    assert {one.multiple for one in space.compressions if one.prunes} == {16}


def test_measured_scores_change_what_is_expected_of_others(digits: Digits) -> None:
    graph = resolve_model(str(digits.model))
    told: list[str] = []
    asked = Evaluation(data=str(digits.test), metric="top1")
    drops = measured_drops(graph, asked, 5.0, told.append)
    assert isinstance(drops, MeasuredDrops)
    ratios = np.array([[0.2, 0.2], [0.4, 0.4], [0.0, 0.5], [0.5, 0.0]])
    before = drops.expected_pct(ratios, 4)
    device = on_d1(graph)
    offered = compressions(device, drops, 5.0)
    after = drops.expected_pct(ratios, 4)
    assert not np.allclose(before, after) and len(told) <= len(RATIOS) + MOST_TRIED + 3 * len(LOW_RANKS)
    # The second stage, which has most of the channels, can lose more than the first: as measured.
    assert after[2] < after[3]
    measured = {one: drops.compressed_pct(one) for one in offered}
    assert all(drop <= 5.0 for drop in measured.values())
    macs = {one: compressed_graph(graph, one).macs for one in offered}
    assert min(macs.values()) < 0.6 * graph.macs
    assert all(len(shares_gone(graph, one)) == 2 for one in offered)


def test_training_with_data_gives_a_smaller_model_that_keeps_the_budget(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device", "d1", "--model", str(digits.model), "--eval-data", str(digits.test), "--budget", "12"]
    words += ["--max-accuracy-drop", "1", "--out", str(tmp_path / "run"), "--json"]
    assert run(["search", "--sampler", "annealing", *words]) == 0
    said = json.loads(capsys.readouterr().out)
    plan = decode_plan(Path(said["plan"]).read_bytes())
    assert said["compression"] == str(plan.compression) != "none"
    assert said["accuracy"]["samples"] == 359 and said["accuracy_drop_pct"] <= 1.0
    smaller = Path(said["compressed_model"])
    assert hashlib.sha256(smaller.read_bytes()).hexdigest() == plan.compression.artefact_sha256
    assert run(["score", str(smaller), "--eval-data", str(digits.test), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["score"]["value"] >= 97.5  # of 99.3, on both halves
    planned = compressed_graph(resolve_model(str(digits.model)), plan.compression)
    assert hetrl.load_model(smaller).macs == planned.macs < hetrl.load_model(digits.model).macs
    assert run(["plan", "show", said["plan"]]) == 0
    assert "channels taken away" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["prune=0/0.5,multiple=16", "low-rank=0.5", "prune=0.3,low-rank=0.5"])
def test_the_host_runs_what_a_plan_compresses(digits: Digits, tmp_path: Path, words: str) -> None:
    graph, one = resolve_model(str(digits.model)), parse_compression(words)
    with quick_host(tmp_path), open_device("host", graph) as device:
        lenient = device.allowing(HOST_ERROR)
        for plan in [*whole_model_plans(device), *host_cut(device)]:
            answer = lenient.measure(msgspec.structs.replace(plan, compression=one), Condition(ui=None))
            exact = all(name.endswith("/fp32") for name in plan.processors)
            assert answer.error is None and answer.output_error is not None
            assert answer.output_error < (1e-3 if exact else HOST_ERROR)


def host_cut(device: Device) -> list[Plan]:
    """One plan with a segment for each fusion group, on two processors in turn."""
    ids = [p.id for p in device.spec.engine(device.engine_name).processors][:2]
    whole, graph = whole_model_plans(device)[0], device.graph
    segments = [Segment(nodes=graph.group_node_ids(g), parts=(Part(ids[g % 2]),)) for g in range(len(graph.groups))]
    return [msgspec.structs.replace(whole, segments=tuple(segments))]


def test_hand_policies_on_compressed_models_are_rows(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--device", "d1", "--model", "resnet18", "--compress", "prune=0.3", "--compress"]
    assert run([*words, "low-rank=0.288", "--max-accuracy-drop", "5", "--json"]) == 0
    rows = {row["policy"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    base, pruned, factored = (rows[f"mace_cpu{words}"] for words in ("", " prune=0.3", " low-rank=0.288"))
    assert base["latency_ms"] > pruned["latency_ms"] and base["latency_ms"] > factored["latency_ms"]
    assert pruned["accuracy_drop_pct"] == 4.92 and factored["accuracy_drop_pct"] == pytest.approx(2.5, abs=0.01)
    # The study's Table 2: 47.24, 23.91 and 15.61 MB.
    assert pruned["model_size_mb"] == pytest.approx(23.91, rel=0.02)
    assert factored["model_size_mb"] == pytest.approx(15.61, rel=0.02)
    assert run([*words, "prun=0.3"]) == 2
    assert "did you mean 'prune'" in capsys.readouterr().err
    assert run([*words, "prune=0.3,multiple=1024"]) == 2
    assert "leaves resnet18 as it is" in capsys.readouterr().err


def test_the_bound_is_on_what_a_run_may_choose(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "--device", "d1", "--model", "resnet18", "--max-accuracy-drop", "30", "--json"]
    assert run([*words, "--compress", "prune=0.65", "--compress", "none"]) == 0
    found = json.loads(capsys.readouterr().out)
    beyond = [row for row in found["rows"] if "prune=0.65" in row["policy"]]
    assert beyond and all(row["gap_to_exact"] is None for row in beyond)
    assert all(row["gap_to_exact"] is None or row["gap_to_exact"] >= 0 for row in found["rows"])
    assert not any("none" in row["policy"] for row in found["rows"])


def test_pruning_fitted_to_inputs_keeps_most_of_the_accuracy(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "small.onnx"), "--eval-data", str(digits.test), "--json"]

    def drop(*words: str) -> float:
        assert run(["compress", str(digits.model), *words, *out]) == 0
        said = json.loads(capsys.readouterr().out)
        points: float = said["scores"]["drop"]["points"]
        return points

    fitted = ["--calibration-data", str(digits.train)]
    assert drop("--prune", "0.3") > 10 and drop("--prune", "0.3", *fitted, "--no-compensation", "--int8") > 10
    assert drop("--prune", "0.3", *fitted) < 2 and drop("--prune", "0/0.4", *fitted) < 2
    assert run(["compress", str(digits.model), "--prune", "0.1/0.2/0.3", *out]) == 2
    assert "2 stages, and 3 ratios" in capsys.readouterr().err
    assert run(["compress", str(digits.model), "--prune", "0.3", *fitted, "--no-compensation", *out]) == 2
    assert "nothing is calibrated" in capsys.readouterr().err


def test_what_was_measured_is_not_forgotten(digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A comparison has no data: the plan's own claim about its compressed model stands."""
    model, budget = str(digits.model), Objective(max_accuracy_drop_pct=1.0)
    found = hetrl.search(
        model, "d1", sampler="random", budget=8, eval_data=digits.test, objective=budget, out=tmp_path / "run"
    )
    assert found.plan.compression.artefact_sha256 and found.plan.key == hetrl.load_plan(found.plan_path).key
    plain = msgspec.structs.replace(found.plan, compression=found.plan.compression.shapes)
    assert plain.key == found.plan.key  # a recording of the one answers for the other
    words = ["compare", "--device", "d1", "--model", model, "--plan", str(found.plan_path), "--json"]
    assert run([*words, "--max-accuracy-drop", "1"]) == 0
    said = json.loads(capsys.readouterr().out)
    learned = next(row for row in said["rows"] if row["policy"] == "learned")
    assert learned["keeps_budgets"] and learned["accuracy_evidence"] == "measured"
    assert learned["accuracy_drop_pct"] == found.accuracy_drop_pct


def test_weights_that_cannot_be_factored_are_not_planned_to_be(tmp_path: Path) -> None:
    """Those that are stored in fewer bits."""
    draw = np.random.default_rng(0)

    def graph_of(kind: str) -> OperatorGraph:
        weight = draw.normal(size=(32, 32, 3, 3)).astype(np.float32)
        stem = numpy_helper.from_array(draw.normal(size=(32, 3, 3, 3)).astype(np.float32), "stem")
        inits, nodes, outputs = [stem], [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 12, 12])]
        if kind == "narrow":
            inits += [
                numpy_helper.from_array((weight * 20).astype(np.int8), "q"),
                numpy_helper.from_array(np.float32(0.05), "s"),
            ]
            nodes.append(helper.make_node("DequantizeLinear", ["q", "s"], ["w"]))
        else:
            inits.append(numpy_helper.from_array(weight, "w"))
        nodes.insert(0, helper.make_node("Conv", ["x", "stem"], ["a"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Conv", ["a", "w"], ["y"], pads=[1, 1, 1, 1]))
        made = helper.make_graph(
            nodes, kind, [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 12, 12])], outputs, inits
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, tmp_path / f"{kind}.onnx")
        return hetrl.load_model(tmp_path / f"{kind}.onnx")

    for kind, factors in (("plain", 1), ("narrow", 0)):
        graph, one = graph_of(kind), Compression(low_rank=0.5)
        planned = compressed_graph(graph, one)
        assert sum(node.front is not None for node in planned.nodes) == factors
        made = graph_from_model(compressed_model(source_of(graph), graph, one), name=kind)
        assert made.macs == planned.macs
