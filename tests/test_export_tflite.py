"""Advice for TensorFlow Lite and LiteRT: the limits that give a plan, and the plans that no limit gives."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hetrl.export import tflite
from hetrl.export.base import Claims, Order
from hetrl.graph import OperatorGraph
from hetrl.plan import Plan
from tests.text_help import (
    BRANCH_WEIGHTS,
    D1,
    LITE_CPU,
    LITE_DSP,
    LITE_GPU,
    Layer,
    alone,
    changed,
    checks,
    lowered,
    net,
    placed,
    reasons,
    written,
)

# Convolutions in runs of three, two and two, cut by what TensorFlow Lite's GPU delegate has no operator for.
RUNS: list[Layer] = [
    ("Conv", ["data", "w_a"], "a1"), ("Conv", ["a1", "w_a"], "a2"), ("Conv", ["a2", "w_a"], "a3"),
    ("Erf", ["a3"], "e1"),
    ("Conv", ["e1", "w_a"], "b1"), ("Conv", ["b1", "w_a"], "b2"), ("Erf", ["b2"], "e2"),
    ("Conv", ["e2", "w_a"], "c1"), ("Conv", ["c1", "w_a"], "c2"),
]  # fmt: skip
RUN_OF = {"a": ("a1", "a2", "a3"), "b": ("b1", "b2"), "c": ("c1", "c2")}


def on_gpu(*nodes: str) -> tuple[OperatorGraph, Plan]:
    graph = net(RUNS, ["c2"], BRANCH_WEIGHTS)
    return graph, placed(graph, dict.fromkeys(nodes, alone(LITE_GPU)), alone(LITE_CPU))


@pytest.mark.parametrize(
    ("runs", "limits"),
    [("", None), ("a", (1, 3, (2, 2))), ("ab", (2, 2, (2,))), ("abc", (3, 2, ()))],
)
def test_tflite_advises_the_limits_that_give_a_plan(
    runs: str, limits: tuple[int, int, tuple[int, ...]] | None, tmp_path: Path
) -> None:
    graph, plan = on_gpu(*(node for run in runs for node in RUN_OF[run]))
    out = written(tflite.EXPORTER, plan, graph, tmp_path / "out")
    advice = msgspec.json.decode((out / tflite.ADVICE).read_bytes(), type=tflite.Advice)
    flags = (out / tflite.FLAGS).read_text().splitlines()
    if limits is None:
        assert flags == ["--use_xnnpack=true", "--num_threads=4"]
    else:
        most, least, left = limits
        assert flags == [
            "--use_gpu=true",
            "--gpu_precision_loss_allowed=true",
            f"--max_delegated_partitions={most}",
            f"--min_nodes_per_partition={least}",
            "--num_threads=4",
        ]
        assert advice.left == left
        assert not changed(tflite.EXPORTER, out, tflite.FLAGS, f"partitions={most}", f"partitions={most + 1}")
        assert not changed(tflite.EXPORTER, out, tflite.ADVICE, '"a1"', '"a9"')
    assert [partition.nodes for partition in advice.delegated] == [RUN_OF[run] for run in runs]
    assert (out / tflite.LITERT).exists() == (runs in ("", "abc"))  # LiteRT has no limits of its own
    assert all(check.ok for check in checks(tflite.EXPORTER, out))


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        (("a1", "a2"), "the 3 operators from 'a1' on are delegated together or not at all, the plan has 2 there"),
        (("b1", "b2"), "the 3 operators from 'a1' on are to stay on the CPU"),
        ((*RUN_OF["a"], *RUN_OF["c"]), "the 2 operators from 'b1' on are to stay on the CPU"),
    ],
)
def test_tflite_refuses_what_no_limit_gives(nodes: tuple[str, ...], why: str) -> None:
    graph, plan = on_gpu(*nodes)
    assert why in reasons(tflite.EXPORTER.claims(plan, graph))
    best = lowered(tflite.EXPORTER, plan, graph)
    assert tflite.EXPORTER.claims(best, graph) == Claims()


def test_tflite_knows_one_delegate() -> None:
    graph = net(RUNS, ["c2"], BRANCH_WEIGHTS)
    plan = placed(graph, {"a1": alone(LITE_DSP)}, alone(LITE_GPU))
    assert "there is one delegate" in reasons(tflite.EXPORTER.claims(plan, graph))


@pytest.mark.parametrize(("where", "quantized"), [(LITE_DSP, True), (LITE_GPU, False), (LITE_CPU, False)])
def test_tflite_says_that_no_option_makes_a_file_int8(where: str, quantized: bool) -> None:
    graph = net(RUNS, ["c2"], BRANCH_WEIGHTS)
    plan = placed(graph, {"a1": alone(where)}, alone(LITE_CPU))
    said = " ".join(tflite.EXPORTER.notes(Order(plan, graph, D1)))
    assert ("No option makes it calculate in int8" in said) is quantized
