"""What ONNX Runtime, OpenVINO and onert do by default, on cases that can be checked by hand."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from hetrl.agents.policies import find_policy
from hetrl.agents.policies.onert_rule import Operation, _Timetable, backends_of, operations_of, ranks
from hetrl.agents.policies.priority_rule import claimed
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.testing.models import UNSUPPORTED, random_graph
from hetrl.zoo.builder import Builder
from hetrl.zoo.resolve import resolve_model
from tests.surrogate_help import D1, chain_graph, graph_of, latency_ms, measured, with_cost

CPU, GPU = "cpu/mace/fp32", "gpu/mace/fp32"
GREEDY = ("ort_greedy", "openvino_hetero")


def test_the_first_that_takes_an_operator_claims_it() -> None:
    takes = [[True, True, True], [True, False, True], [True, False, False], [True, True, False]]
    assert claimed(takes, [1, 2, 0]) == [1, 2, 0, 1]
    assert claimed(takes, [0, 1, 2]) == [0, 0, 0, 0]


def with_refused() -> SurrogateDevice:
    """Four convolutions; the third is one group with an activation that the GPU does not take."""
    net = Builder("refused")
    x = net.input("x", (1, 8, 24, 24))
    for number in range(4):
        x = net.conv(x, f"l{number}", 8, 3)
        if number == 2:
            x = net.activation(x, "refused", UNSUPPORTED)
    return SurrogateDevice(D1, graph_of(net.finish(x)))


@pytest.mark.parametrize("policy", GREEDY)
def test_greedy_runtimes_put_all_they_can_on_the_accelerator_whatever_it_costs(policy: str) -> None:
    device = with_refused()
    plan = find_policy(policy).plan(device)
    assert [s.processors for s in plan.segments] == [(GPU,), (CPU,), (GPU,)]  # three submodels
    assert [len(s.nodes) for s in plan.segments] == [2, 2, 1]
    assert not measured(device, plan).fallbacks
    assert latency_ms(device, plan) > latency_ms(device, find_policy("mace_cpu").plan(device))


@pytest.mark.parametrize("policy", GREEDY)
def test_priority_is_the_devices_order_with_the_cpu_last(policy: str) -> None:
    device = SurrogateDevice(load_spec("d1"), resolve_model("resnet18"), "tflite")
    plan = find_policy(policy).plan(device)
    assert [p.unit for p in device.engine.processors] == ["cpu", "gpu", "dsp"]
    assert plan.processors == ("gpu/tflite/fp16",)  # though the DSP takes it too, and is faster
    faster = min(latency_ms(device, find_policy(name).plan(device)) for name in ("tflite_gpu", "tflite_dsp"))
    assert latency_ms(device, plan) > faster


def operation(
    exec_us: tuple[int | None, ...], reads: tuple[tuple[int, int], ...], readers: tuple[int, ...], alone: bool = True
) -> Operation:
    """Makes one tensor of 4000 bytes."""
    return Operation(exec_us, reads, ((readers, 4000),), alone)


def pair(first: tuple[int | None, ...], second: tuple[int | None, ...]) -> tuple[Operation, ...]:
    """Two operators in a row, on a CPU (0) and a GPU (1)."""
    return operation(first, ((-1, 4000),), (1,)), operation(second, ((0, 4000),), ())


def test_ranks_by_hand() -> None:
    # The second: mean 75 times deviation 25. The first: the same, and a mean transfer of (1 + 2 * 10) / 2 = 10.
    assert ranks(pair((100, 50), (100, 50))) == [1875 + 1875 + 10, 1875]
    assert ranks(pair((100, None), (70, 70))) == [100 + 70 + 10, 70]  # no deviation: the mean itself


def test_operators_go_where_they_end_soonest() -> None:
    assert backends_of(pair((100, 50), (100, 50)), cpu=0) == [1, 1]
    # The CPU takes twice its time: 100 loses to a GPU with 190 and wins against one with 210.
    assert backends_of(pair((100, 190), (100, 190)), cpu=0) == [1, 1]
    assert backends_of(pair((100, 210), (100, 210)), cpu=0) == [0, 0]
    assert backends_of(pair((100, None), (100, 50)), cpu=0) == [0, 0]  # a border inside a branch costs 2 ms and more


def test_a_branch_is_left_where_that_is_worth_the_border() -> None:
    # On the GPU from 0 to 50; then 2 ms, and 2 * 4000 / 400 * 2 = 40 us, to the CPU, where it takes 2 * 100.
    stay, leave = 2000 + 40 + 200 - 1, 2000 + 40 + 200 + 1
    assert backends_of(pair((5000, 50), (100, stay)), cpu=0) == [1, 1]
    assert backends_of(pair((5000, 50), (100, leave)), cpu=0) == [1, 0]


def test_independent_branches_are_spread_over_backends() -> None:
    # Two operators read the model's input, alike and fairly alike on both backends; a third joins them.
    first = operation((3000, 5000), ((-1, 4000),), (2,), alone=False)
    join = operation((10, 5000), ((0, 4000), (1, 4000)), (), alone=False)
    assert set(backends_of((first, first, join), cpu=0)[:2]) == {0, 1}


def test_gaps_are_filled() -> None:
    table = _Timetable()
    table.take(0, 10)
    late = table.take(100, 10)
    assert table.first_gap(0, 50) == 11
    assert table.first_gap(0, 95) == 111
    assert table.first_gap(20, 50) == 20
    table.free(late)
    assert table.first_gap(0, 95) == 11


def test_onert_sees_the_cost_models_times_and_the_models_borders() -> None:
    device = with_refused()
    model = device.cost_model()
    operations = operations_of(model)
    assert [o.exec_us[1] is None for o in operations] == [False, False, True, False]
    assert [o.mergeable for o in operations] == [True] * 4
    cpu_ms = model.tables.time_ms[0, :, 0, 0, 0]
    assert np.allclose([o.exec_us[0] for o in operations], 1000 * cpu_ms, atol=0.5)
    assert operations[0].reads == ((-1, 8 * 24 * 24 * 4),)


def test_onert_moves_to_the_gpu_when_that_becomes_fast_enough() -> None:
    graph = chain_graph(4)
    slow = SurrogateDevice(with_cost(1, {"ms_per_gmac": 50.0}), graph)
    fast = SurrogateDevice(with_cost(1, {"ms_per_gmac": 0.01, "ms_per_mb": 0.01, "launch_ms": 0.01}), graph)
    plans = [find_policy("onert_heft").plan(device) for device in (slow, fast)]
    assert [plan.processors for plan in plans] == [(CPU,), (GPU,)]


def test_onerts_branches_overlap_where_they_are_on_two_backends() -> None:
    net = Builder("fork")
    stem = net.conv(net.input("x", (1, 16, 112, 112)), "stem", 64, 3)
    wide = [net.conv(net.conv(stem, f"a{i}", 128, 3), f"b{i}", 128, 3) for i in range(3)]
    device = SurrogateDevice(D1, graph_of(net.finish(net.concat(wide, "join"))))
    plan = find_policy("onert_heft").plan(device)
    assert plan.overlap and set(plan.processors) == {CPU, GPU}
    assert latency_ms(device, plan) < latency_ms(device, msgspec.structs.replace(plan, overlap=False))


def test_every_default_runs_every_model() -> None:
    for seed in range(20):
        device = SurrogateDevice(D1, random_graph(seed, 10))
        for name in (*GREEDY, "onert_heft"):
            answer = measured(device, find_policy(name).plan(device))
            assert not answer.fallbacks
