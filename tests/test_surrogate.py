"""The cost model: what must hold for any model and any plan of it."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetrl.condition import Ui
from hetrl.device_bridge.spec import DeviceSpec
from hetrl.device_bridge.surrogate.chains import chain_costs, position_work
from hetrl.device_bridge.surrogate.cost_model import CostModel, Schedules
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.space import Ints, PlanSpace
from hetrl.errors import UsageError
from hetrl.measurement import Failure, Measurement
from hetrl.objective import Objective
from hetrl.plan import Axis, Memory, Part, Segment
from hetrl.testing.devices import whole_model_plans
from hetrl.testing.models import UNSUPPORTED, random_decisions, random_graph
from hetrl.zoo.builder import Builder
from tests.surrogate_help import (
    COLD,
    D1,
    chain_graph,
    graph_of,
    latency_ms,
    measured,
    on_gpu,
    plan_with,
    segments_by_group,
    with_cost,
)

UI = Ui()
COUNT = 24  # random plans per random model
seeds = st.integers(0, 10**6)
few = settings(max_examples=25)


@cache
def space_of(seed: int) -> PlanSpace:
    return PlanSpace(SurrogateDevice(D1, random_graph(seed, 1 + seed % 9)), Objective())


def plans_of(seed: int) -> tuple[PlanSpace, Ints, Schedules]:
    """A random model, random decisions about it, and their schedules."""
    space = space_of(seed % 40)
    taken = random_decisions(space, seed, COUNT)
    return space, taken, space.schedules(taken)[0]


def latencies(spec: DeviceSpec, space: PlanSpace, batch: Schedules) -> np.ndarray:
    return SurrogateDevice(spec, space.graph).cost_model().evaluate(batch, None).latency_ms


def one(batch: Schedules, index: int) -> Schedules:
    return Schedules(*(getattr(batch, f.name)[..., [index]] for f in fields(Schedules)))


@given(seeds)
@few
def test_a_batch_gives_each_member_what_it_gets_alone(seed: int) -> None:
    space, taken, batch = plans_of(seed)
    model = space.device.cost_model()
    together = model.evaluate(batch, UI)
    for index in range(0, COUNT, 5):
        alone = model.evaluate(one(batch, index), UI)
        for name in ("latency_ms", "frame_drop_rate", "peak_memory_mb", "energy_mj", "busy_ms"):
            assert np.array_equal(getattr(together, name)[..., index], getattr(alone, name)[..., 0]), name
        said = space.device.measure(space.plan(taken[:, index]), COLD)
        assert said.latency_ms == together.latency_ms[index]
        assert said.frame_drop_rate == together.frame_drop_rate[index]


@given(seeds, st.integers(0, 1), st.sampled_from(["ms_per_gmac", "ms_per_mb", "launch_ms"]), st.floats(1, 20))
@few
def test_a_slower_processor_makes_no_plan_faster(seed: int, processor: int, name: str, factor: float) -> None:
    space, _, batch = plans_of(seed)
    slower = latencies(with_cost(processor, {name: factor}), space, batch)
    assert (slower >= latencies(D1, space, batch)).all()


@given(seeds, st.integers(0, 1), st.floats(0.01, 1))
@few
def test_a_lower_cap_finishes_no_earlier(seed: int, processor: int, factor: float) -> None:
    space, _, batch = plans_of(seed)
    duty = batch.duty.copy()
    duty[processor] *= factor
    assert (latencies(D1, space, replace(batch, duty=duty)) >= latencies(D1, space, batch)).all()


def live_mb(model: CostModel) -> float:
    """Largest sum of activations that are needed at the same time, each counted once."""
    work = model.tables.workload
    needed = [
        sum(
            size
            for t, size in enumerate(work.elements)
            if (work.made_at[t] >= 0 or t in work.inputs) and work.made_at[t] <= k <= work.last_use[t]
        )
        for k in range(len(work.items))
    ]
    return 4e-6 * max(needed)


@given(seeds)
@few
def test_time_memory_and_energy_lie_between_their_bounds(seed: int) -> None:
    space, _, batch = plans_of(seed)
    model = space.device.cost_model()
    free = replace(batch, duty=np.ones_like(batch.duty))
    answers = model.evaluate(free, UI)
    busy, latency = answers.busy_ms, answers.latency_ms
    moved, worked = answers.steps.transfer_ms.sum(axis=0), answers.steps.work_ms.sum(axis=0)
    contention = 1 + model.contention.max()
    slack = 1e-9 * latency
    assert (busy.max(axis=0) <= latency + slack).all()
    assert (latency <= contention * busy.sum(axis=0) + moved + slack).all()
    in_a_row = ~free.overlap
    assert np.allclose(latency[in_a_row], (worked + moved)[in_a_row], rtol=1e-12)
    assert (latency <= worked + moved + slack).all()
    chained = np.array([option.axis is Axis.HEIGHT for option in model.tables.options])
    for k, item in enumerate(model.tables.workload.items):
        offset = np.where(chained[free.option[k]], free.end[k] - k, 0)
        parts = model.tables.time_ms[free.memory[k], k, free.option[k], offset]
        assert (answers.steps.work_ms[k] >= parts.max(axis=-1)).all(), item
    weights = 4e-6 * sum(item.weight_elements for item in model.tables.workload.items)
    assert (answers.peak_memory_mb >= weights + live_mb(model) - 1e-9).all()
    idle, active = D1.idle_w.value, np.array([p.active_w.value for p in space.engine.processors])
    assert (answers.energy_mj >= idle * latency + active @ busy - slack).all()
    assert (answers.energy_mj <= (idle + active.sum()) * latency + slack * 100).all()
    assert ((answers.frame_drop_rate >= 0) & (answers.frame_drop_rate <= 1)).all()


def test_an_operator_that_the_gpu_lacks_runs_on_the_cpu_and_says_so() -> None:
    for seed in range(200, 215):
        graph = random_graph(seed, 7)
        device = SurrogateDevice(D1, graph)
        lacking = [g.index for g in graph.groups if {graph.nodes[n].op_type for n in g.nodes} & {UNSUPPORTED}]
        gpu, cpu = (p.id for p in reversed(device.engine.processors))
        answer = measured(device, on_gpu(device, Memory.IMAGE))
        explicit = segments_by_group(device, [cpu if g in lacking else gpu for g in range(len(graph.groups))])
        assert answer.latency_ms == pytest.approx(measured(device, explicit).latency_ms, rel=1e-12)
        assert [f.node for f in answer.fallbacks] == [graph.group_node_ids(g)[0] for g in lacking]
        assert all(UNSUPPORTED in f.reason and f.cost_ms > 0 for f in answer.fallbacks)
        assert measured(device, explicit).fallbacks == ()


def test_a_chain_of_one_group_costs_what_the_group_costs_alone() -> None:
    for seed in range(8):
        model = space_of(seed).device.cost_model()
        work = position_work(model, Memory.IMAGE, 16, np.inf, (1.0, 1.0))
        chains = chain_costs(model, work, Memory.IMAGE)
        able = model.tables.possible[:, chains.options]
        assert np.array_equal(np.isfinite(chains.work_ms[:, 0]), able)
        assert np.array_equal(chains.work_ms[:, 0][able], work[:, chains.options, 0][able])


def test_one_chain_saves_the_sharing_between_its_groups_and_pays_halos() -> None:
    graph = chain_graph(36)  # longer than CoDL's chains, which hold 30
    device = SurrogateDevice(D1, graph)
    ids = [graph.group_node_ids(g) for g in range(36)]
    gpu, cpu = (p.id for p in reversed(device.engine.processors))

    def halves(share: int, lengths: list[int]) -> Measurement:
        parts, at, segments = (Part(gpu, share), Part(cpu, 100 - share)), 0, []
        for length in lengths:
            nodes = tuple(n for group in ids[at : at + length] for n in group)
            segments.append(Segment(nodes=nodes, parts=parts, axis=Axis.HEIGHT, memory=Memory.IMAGE))
            at += length
        return measured(device, plan_with(device, segments))

    for share in (50, 37):  # 37 % is on no grid
        whole, split, singles = (halves(share, lengths) for lengths in ([36], [18, 18], [1] * 36))
        shared = [sum(s.transfer_ms for s in m.segments) for m in (whole, split, singles)]
        assert shared == sorted(shared)
        busy = [[u.busy * (m.latency_ms or 0) for u in m.utilization] for m in (whole, split, singles)]
        assert all(sum(x) >= sum(y) for x, y in pairwise(busy))
    coarse, odd, fine = (halves(share, [36]).utilization[1].busy for share in (30, 37, 40))
    assert coarse <= odd <= fine


def test_groups_may_run_in_another_order() -> None:
    net = Builder("fork")
    x = net.conv(net.input("x", (1, 8, 24, 24)), "stem", 8, 3)
    join = net.concat([net.conv(x, "left", 8, 3), net.conv(x, "right", 16, 5)], "join")
    device = SurrogateDevice(D1, graph_of(net.finish(join)))
    for unit in device.engine.processors:
        memory = Memory.BUFFER if unit.memory else None
        segments = {
            n: Segment(nodes=(n,), parts=(Part(unit.id),), memory=memory) for n in ("stem", "left", "right", "join")
        }
        orders = [[segments[n] for n in ("stem", *pair, "join")] for pair in (("left", "right"), ("right", "left"))]
        first, second = (measured(device, plan_with(device, order)) for order in orders)
        assert first.latency_ms == pytest.approx(second.latency_ms)
        assert [s.processors for s in first.segments] == [s.processors for s in second.segments]


def test_each_segment_may_have_its_own_memory_type() -> None:
    graph = chain_graph(2)
    device = SurrogateDevice(D1, graph)
    gpu = device.engine.processors[1].id

    def latency(*memories: Memory) -> float:
        segments = [
            Segment(nodes=graph.group_node_ids(g), parts=(Part(gpu),), memory=m) for g, m in enumerate(memories)
        ]
        return latency_ms(device, plan_with(device, segments))

    buffer, image = Memory.BUFFER, Memory.IMAGE
    assert latency(image, image) < min(latency(image, buffer), latency(buffer, image)) < latency(buffer, buffer)
    convert = latency(image, buffer) + latency(buffer, image) - latency(buffer, buffer) - latency(image, image)
    elements = graph.tensor_by_name["l0"].elements
    link = device.engine.links[0]
    assert convert == pytest.approx(2 * link.image_ms_per_melem.value * elements / 1e6)


def test_a_split_that_leaves_a_part_empty_is_a_failed_measurement() -> None:
    graph = chain_graph(1)
    device = SurrogateDevice(D1, graph)
    gpu, cpu = (p.id for p in reversed(device.engine.processors))
    parts = (Part(gpu, 99), Part(cpu, 1))
    segment = Segment(nodes=graph.group_node_ids(0), parts=parts, axis=Axis.OUTPUT_CHANNELS, memory=Memory.IMAGE)
    failed = device.measure(plan_with(device, [segment]), COLD)
    assert failed.error is not None and failed.error.kind is Failure.UNSUPPORTED


def test_a_model_of_views_takes_no_time_and_has_nothing_to_place() -> None:
    net = Builder("views")
    device = SurrogateDevice(D1, graph_of(net.finish(net.flatten(net.input("x", (1, 4, 4, 4)), "flat"))))
    assert device.measure(whole_model_plans(device)[0], COLD).latency_ms == 0
    with pytest.raises(UsageError, match="nothing to place"):
        PlanSpace(device, Objective())
