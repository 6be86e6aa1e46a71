"""Schedules whose independent branches run side by side."""

from __future__ import annotations

from dataclasses import fields, replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetrl.condition import Ui
from hetrl.device_bridge.surrogate.cost_model import Answers, CostModel, Schedules
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.space import PlanSpace
from hetrl.graph import OperatorGraph
from hetrl.objective import Objective
from hetrl.plan import decode_plan, encode_plan
from hetrl.testing.models import random_decisions, random_graph
from hetrl.zoo.builder import Builder
from tests.surrogate_help import COLD, D1, chain_graph, graph_of, latency_ms, measured, segments_by_group

UI = Ui()
COUNT = 24
seeds = st.integers(0, 10**6)
few = settings(max_examples=25)


def overlapping(batch: Schedules) -> Schedules:
    return replace(batch, overlap=np.ones_like(batch.overlap))


def random_batch(seed: int) -> tuple[CostModel, Schedules]:
    """A random model with forks, and random plans of it."""
    space = PlanSpace(SurrogateDevice(D1, random_graph(seed % 40, 2 + seed % 9)), Objective())
    return space.device.cost_model(), space.schedules(random_decisions(space, seed, COUNT))[0]


def fork_graph(width: int = 2) -> OperatorGraph:
    """A stem, equal branches, and their concatenation."""
    net = Builder("fork")
    stem = net.conv(net.input("x", (1, 16, 64, 64)), "stem", 32, 3)
    branches = [net.conv(stem, f"b{i}", 64, 3) for i in range(width)]
    return graph_of(net.finish(net.concat(branches, "join")))


@given(seeds)
@few
def test_overlap_costs_at_most_contention_and_saves_at_most_what_the_critical_path_allows(seed: int) -> None:
    model, batch = random_batch(seed)
    serial, side = model.evaluate(batch, UI), model.evaluate(overlapping(batch), UI)
    slack = 1e-9 * serial.latency_ms
    assert (side.latency_ms <= (1 + model.side_by_side) * serial.latency_ms + slack).all()
    assert (side.latency_ms >= side.busy_ms.max(axis=0) - slack).all()
    assert np.array_equal(side.busy_ms, serial.busy_ms)
    assert (side.latency_ms >= critical_path_ms(model, side) - slack).all()
    assert ((side.frame_drop_rate >= 0) & (side.frame_drop_rate <= 1)).all()
    alone = [len({tuple(model.uses[:, o]) for o in column}) == 1 for column in batch.option.T]
    assert np.allclose(side.latency_ms[alone], serial.latency_ms[alone], rtol=1e-12)


def critical_path_ms(model: CostModel, answers: Answers) -> np.ndarray:
    """Longest chain of dependent groups, each with its own transfers and work."""
    work = model.tables.workload
    took = answers.steps.transfer_ms + answers.steps.work_ms
    took[-1] -= answers.latency_ms - answers.steps.end_ms.max(axis=0)  # bringing outputs home comes after all
    done = np.zeros((len(work.elements), took.shape[1]))
    for k, item in enumerate(work.items):
        begin = np.max([done[r.tensor] for r in item.reads], axis=0) if item.reads else 0.0
        done[list(item.writes)] = begin + np.minimum(took[k], answers.steps.end_ms[k] - answers.steps.begin_ms[k])
    return done.max(axis=0)


@given(seeds)
@few
def test_no_processor_does_two_things_and_nothing_starts_before_its_operands(seed: int) -> None:
    model, batch = random_batch(seed)
    answers = model.evaluate(overlapping(batch), None)
    steps, work = answers.steps, model.tables.workload
    for b in range(COUNT):
        free = np.zeros(len(model.uses))
        for k, item in enumerate(work.items):
            used = model.uses[:, batch.option[k, b]]
            assert steps.begin_ms[k, b] >= free[used].max() - 1e-9
            for read in item.reads:
                made = work.made_at[read.tensor]
                if 0 <= made < len(work.items) - 1:
                    assert steps.begin_ms[k, b] >= steps.end_ms[made, b] - 1e-9
            if k < len(work.items) - 1:  # the last one's end holds the outputs' way home
                free[used] = steps.end_ms[k, b]


@given(seeds)
@few
def test_a_mixed_batch_gives_each_member_what_it_gets_alone(seed: int) -> None:
    model, batch = random_batch(seed)
    mixed = replace(batch, overlap=np.arange(COUNT) % 2 == 0)
    together = model.evaluate(mixed, UI)
    for index in range(0, COUNT, 5):
        one = Schedules(*(getattr(mixed, f.name)[..., [index]] for f in fields(Schedules)))
        alone = model.evaluate(one, UI)
        for name in ("latency_ms", "frame_drop_rate", "peak_memory_mb", "energy_mj", "busy_ms"):
            assert np.array_equal(getattr(together, name)[..., index], getattr(alone, name)[..., 0]), name


def test_a_chain_gains_nothing() -> None:
    device = SurrogateDevice(D1, chain_graph(6))
    cpu, gpu = (p.id for p in device.engine.processors)
    plan = segments_by_group(device, [cpu, gpu, gpu, cpu, cpu, gpu])
    side = msgspec.structs.replace(plan, overlap=True)
    assert latency_ms(device, side) == pytest.approx(latency_ms(device, plan), rel=1e-12)


def test_two_branches_take_as_long_as_the_slower_and_contention() -> None:
    device = SurrogateDevice(D1, fork_graph())
    cpu, gpu = (p.id for p in device.engine.processors)
    names = {device.graph.group_node_ids(g)[0]: g for g in range(len(device.graph.groups))}
    where = [cpu] * len(device.graph.groups)
    where[names["b1"]] = gpu
    plan = segments_by_group(device, where)
    serial, side = measured(device, plan), measured(device, msgspec.structs.replace(plan, overlap=True))
    assert serial.latency_ms is not None and side.latency_ms is not None
    took = {s.id: s.end_ms - s.start_ms for s in serial.segments}
    contention = device.cost_model().side_by_side
    # The shorter branch disappears behind the longer one; both are slowed down by sharing the memory.
    assert (
        serial.latency_ms - took["s1"]
        <= side.latency_ms
        <= serial.latency_ms - took["s1"] + contention * sum(took.values())
    )
    begins = {s.processors[0]: s.start_ms for s in side.segments[1:3]}
    assert begins[gpu] < max(s.end_ms for s in side.segments if s.processors[0] == cpu)


def test_overlap_survives_the_plan_file() -> None:
    device = SurrogateDevice(D1, fork_graph(3))
    cpu, gpu = (p.id for p in device.engine.processors)
    plan = msgspec.structs.replace(
        segments_by_group(device, [(cpu, gpu)[g % 2] for g in range(len(device.graph.groups))]), overlap=True
    )
    again = decode_plan(encode_plan(plan))
    assert again == plan and again.key != msgspec.structs.replace(plan, overlap=False).key
    assert device.measure(again, COLD).latency_ms == device.measure(plan, COLD).latency_ms
