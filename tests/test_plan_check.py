"""Whether a plan fits a model and a device: one clear error for every way in which it does not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.errors import PlanError
from hetrl.plan import Axis, Cap, Memory, Part, Segment
from hetrl.plan_check import check_plan
from hetrl.testing.devices import whole_model_plans
from hetrl.zoo.builder import Builder
from tests.surrogate_help import COLD, D1, chain_graph, graph_of, plan_with

CPU, GPU = "cpu/mace/fp32", "gpu/mace/fp32"
HALVES = (Part(GPU, 50), Part(CPU, 50))
GRAPH = chain_graph(4)
DEVICE = SurrogateDevice(D1, GRAPH)
PLAN = whole_model_plans(DEVICE)[0]
ONE = PLAN.segments[0]
MODEL = PLAN.model
replace = msgspec.structs.replace


def fork() -> SurrogateDevice:
    net = Builder("fork")
    x = net.conv(net.input("x", (1, 8, 24, 24)), "stem", 8, 3)
    left = net.activation(net.conv(x, "left", 8, 3), "left.relu")
    join = net.concat([left, net.conv(x, "right", 8, 3)], "join")
    return SurrogateDevice(D1, graph_of(net.finish(net.gemm(net.flatten(join, "flat"), "logits", 10))))


LEFT, TAIL = ("left", "left.relu"), ("flat", "logits")


@pytest.mark.parametrize(
    ("segments", "field", "message"),
    [
        ([("stem", "join"), LEFT, ("right",), TAIL], "segments[0].nodes", "not convex"),
        ([LEFT, ("stem",), ("right", "join"), TAIL], "segments[0].nodes", "later segment"),
        ([("stem",), ("join",), LEFT, ("right",), TAIL], "segments[1].nodes", "later segment"),
        ([("stem", "left"), ("left.relu", "right", "join"), TAIL], "segments[0].nodes", "fusion group"),
        ([("stem", "nothing"), LEFT, ("right", "join"), TAIL], "segments[0].nodes", "'nothing' is no operator"),
        ([("stem",), LEFT, ("right", "join")], "segments", "is in no segment"),
    ],
)
def test_a_plan_that_does_not_fit_its_model_names_the_segment(
    segments: list[tuple[str, ...]], field: str, message: str
) -> None:
    device = fork()
    with pytest.raises(PlanError, match=message) as caught:
        check_plan(plan_with(device, [Segment(nodes=nodes, parts=(Part(CPU),)) for nodes in segments]), device.graph)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("index", "nodes", "axis"),
    [(0, ("stem", *LEFT), Axis.OUTPUT_CHANNELS), (3, TAIL, Axis.HEIGHT), (2, ("right", "join"), Axis.OUTPUT_CHANNELS)],
)
def test_a_segment_that_cannot_be_split_that_way_names_its_axis(index: int, nodes: tuple[str, ...], axis: Axis) -> None:
    device = fork()
    rest = [group for group in (("stem",), LEFT, ("right", "join"), TAIL) if not set(group) & set(nodes)]
    whole = [Segment(nodes=group, parts=(Part(CPU),)) for group in rest]
    whole.insert(index, Segment(nodes=nodes, parts=HALVES, axis=axis))
    with pytest.raises(PlanError) as caught:
        check_plan(plan_with(device, whole), device.graph)
    assert caught.value.field == f"segments[{index}].axis"


def test_a_plan_for_other_weights_or_another_model_says_so() -> None:
    graph = replace(GRAPH, weights_hash="a" * 64)
    for weights, fits in ((None, True), ("a" * 64, True), ("b" * 64, False)):
        plan = replace(PLAN, model=replace(MODEL, weights_sha256=weights))
        assert check_plan(plan, GRAPH) == ((0, 1, 2, 3),)
        if fits:
            check_plan(plan, graph)
        else:
            with pytest.raises(PlanError, match="other weights") as caught:
                check_plan(plan, graph)
            assert caught.value.field == "model.weights_sha256"
    with pytest.raises(PlanError, match="--model"):
        check_plan(PLAN, chain_graph(5))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"segments": (replace(ONE, parts=(Part("npu/mace/int8"),)),)}, "segments[0].parts"),
        ({"segments": (replace(ONE, parts=HALVES[::-1], axis=Axis.HEIGHT),)}, "segments[0].parts"),  # GPU first
        ({"segments": (replace(ONE, memory=Memory.IMAGE),)}, "segments[0].memory"),
        ({"caps": (Cap("npu/mace/int8", 0.5),)}, "caps[0].processor"),
    ],
)
def test_a_plan_that_does_not_fit_its_device_names_the_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(PlanError) as caught:
        DEVICE.measure(replace(PLAN, **fields), COLD)
    assert caught.value.field == field
