"""CoDL's files: which operators read them, in which order, which numbers they hold, and what they cannot say."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from hetrl.condition import Condition
from hetrl.errors import Infeasible
from hetrl.export import codl
from hetrl.export.base import Claims, Wish
from hetrl.export.bundle import Refused
from hetrl.export.codl import EXPORTER
from hetrl.export.codl_order import shared_operators
from hetrl.export.expected import predicted
from hetrl.plan import Axis, Memory
from hetrl.splits import channel_bounds, every_part_works, row_bounds
from hetrl.zoo.resolve import resolve_model
from tests.export_help import hand_plan
from tests.text_help import (
    BRANCH_WEIGHTS,
    BRANCHES,
    CPU,
    D1,
    GPU,
    Layer,
    Place,
    alone,
    changed,
    checks,
    net,
    placed,
    reasons,
    shared,
    written,
)


def test_codl_orders_operators_as_its_converter_does() -> None:
    """Depth first from the output: the addition's first operand is finished before its second one."""
    kinds = {found.node: found.kind for found in shared_operators(net(BRANCHES, ["up"], BRANCH_WEIGHTS))}
    assert kinds == {"a": "Conv2D", "b": "Conv2D", "down": "Conv2D", "up": "Deconv2D"}
    assert list(kinds) == ["a", "b", "down", "up"]
    turned = [*BRANCHES[:5], ("Add", ["side", "pool"], "sum"), *BRANCHES[6:]]
    assert [found.node for found in shared_operators(net(turned, ["up"], BRANCH_WEIGHTS))] == ["down", "a", "b", "up"]


def test_codl_follows_outputs_in_their_order() -> None:
    layers: list[Layer] = [("Conv", ["data", "w_a"], "a"), ("Conv", ["data", "w_b"], "b")]
    assert [s.node for s in shared_operators(net(layers, ["b", "a"], BRANCH_WEIGHTS))] == ["b", "a"]


@pytest.mark.parametrize(("view", "dense"), [("Reshape", ["dense1", "dense2"]), ("Flatten", [])])
def test_codl_shares_dense_layers_behind_a_reshape_alone(view: str, dense: list[str]) -> None:
    layers: list[Layer] = [
        ("Conv", ["data", "w_a"], "a"),
        (view, ["a", "flat_shape"] if view == "Reshape" else ["a"], "flat"),
        ("Gemm", ["flat", "w_1"], "dense1"),
        ("Relu", ["dense1"], "positive"),
        ("Gemm", ["positive", "w_2"], "dense2"),
    ]
    graph = net(layers, ["dense2"], {"w_a": (4, 4, 3, 3), "w_1": (16, 256), "w_2": (10, 16)})
    found = shared_operators(graph)
    assert [s.node for s in found] == ["a", *dense]
    assert {s.kind for s in found[1:]} == ({"FullyConnected"} if dense else set())


def test_codl_writes_its_value_codes(tmp_path: Path) -> None:
    """30 % of 28 channels are 12 in a plan, and 8 to CoDL: the share of 12 is written."""
    graph = net(BRANCHES, ["up"], {**BRANCH_WEIGHTS, "w_c": (4, 28, 3, 3)})
    plan = placed(
        graph, {"a": shared(Axis.HEIGHT, 60), "b": alone(CPU), "up": shared(Axis.OUTPUT_CHANNELS, 30)}, alone(GPU)
    )
    out = written(EXPORTER, plan, graph, tmp_path / "out")
    assert (out / "pdim_config_net.txt").read_text() == "1 4 4 4\n"
    assert (out / "pratio_config_net.txt").read_text() == "0.6 0 1 0.428571\n"
    assert all(check.ok for check in checks(EXPORTER, out))
    assert not changed(EXPORTER, out, "pdim_config_net.txt", "1 4", "4 4")
    assert not changed(EXPORTER, out, "pdim_config_net.txt", "1 4", "2 4")
    assert not changed(EXPORTER, out, "pratio_config_net.txt", "0.6", "0.7")
    assert not changed(EXPORTER, out, "operators.json", '"ratio": 0.6', '"ratio": 0.7')
    assert not changed(EXPORTER, out, "environment.sh", "TIME=0", "TIME=1")


def test_codl_files_as_its_own_scripts_write_them() -> None:
    """Numbers and spaces, ratios as C++ prints floats."""
    assert codl.read_dims("1 4 4 1 \n") == (1, 4, 4, 1)
    assert codl.read_ratios("0.6 1 0 0.35 ") == (0.6, 1.0, 0.0, 0.35)
    for wrong in ("1 2", "1,4", "4.0", "x"):
        with pytest.raises(Refused):
            codl.read_dims(wrong)
    for wrong in ("0.5 1.5", "-0.1", "nan", "half"):
        with pytest.raises(Refused):
            codl.read_ratios(wrong)


@pytest.mark.parametrize("axis", [Axis.HEIGHT, Axis.OUTPUT_CHANNELS])
def test_codl_cuts_where_the_plan_does(axis: Axis) -> None:
    cut, bounds = (codl.gpu_rows, row_bounds) if axis is Axis.HEIGHT else (codl.gpu_channels, channel_bounds)
    tried = exact = 0
    for size in (*range(2, 260), 512, 1000, 2048):
        for percent in range(10, 100, 10):
            wanted = bounds(size, [percent, 100 - percent])
            if every_part_works(wanted):
                share = codl.gpu_share(axis, size, [percent, 100 - percent])
                assert cut(size, share) == wanted[1]
                tried, exact = tried + 1, exact + (share == percent / 100)
    assert tried / 2 < exact < tried


def test_codl_refuses_what_its_files_cannot_say() -> None:
    graph = net(BRANCHES, ["up"], BRANCH_WEIGHTS)

    def refusal(node: str, place: Place, **settings: float) -> str:
        return reasons(EXPORTER.claims(placed(graph, {node: place}, alone(GPU), **settings), graph))

    assert refusal("a", shared(Axis.HEIGHT, 50)) == ""
    assert "runs whole, on the GPU" in refusal("pool", alone(CPU))
    assert "runs whole, on the GPU" in refusal("deep", shared(Axis.HEIGHT, 50))
    assert "output channels alone as a Deconv2D" in refusal("up", shared(Axis.HEIGHT, 50))
    assert "1 ms, not to 4 ms" in refusal("a", alone(CPU), kernel_slice_ms=4.0)
    assert "it does not calculate in fp16" in refusal("a", alone("gpu/ncnn/fp16"))
    plan = placed(graph, {"a": shared(Axis.HEIGHT, 50)}, alone(GPU))
    buffers = tuple(replace(segment, memory=Memory.BUFFER) for segment in plan.segments)
    assert "OpenCL buffers" in reasons(EXPORTER.claims(replace(plan, segments=buffers), graph))
    mixed = (buffers[0], *plan.segments[1:])
    assert "one memory type" in reasons(EXPORTER.claims(replace(plan, segments=mixed), graph))


def test_codl_prices_chains_one_by_one() -> None:
    graph, plan = resolve_model("vgg16"), hand_plan("vgg16", "codl_image")
    assert any(limit.reason.startswith("chains") for limit in EXPORTER.claims(plan, graph).left_out)
    unchained = EXPORTER.carried(plan, graph)
    assert [node for s in unchained.segments for node in s.nodes] == [node for s in plan.segments for node in s.nodes]
    times = [predicted(p, graph, D1, Condition()).latency_ms or 0 for p in (plan, unchained)]
    assert 0 < times[0] < times[1]
    best = EXPORTER.lowered(Wish(plan, graph, D1, Condition()))
    assert EXPORTER.claims(best, graph) == Claims()
    assert (predicted(best, graph, D1, Condition()).latency_ms or 0) > 0


def test_codl_stops_at_dilated_convolutions() -> None:
    graph = net([("Conv", ["data", "w_dilated"], "a")], ["a"], {"w_dilated": (4, 4, 3, 3)})
    for place in (alone(CPU), alone(GPU), shared(Axis.HEIGHT, 50)):
        assert "dilated" in reasons(EXPORTER.claims(placed(graph, {"a": place}, alone(GPU)), graph))
    with pytest.raises(Infeasible):
        EXPORTER.lowered(Wish(placed(graph, {}, alone(GPU)), graph, D1, Condition()))
