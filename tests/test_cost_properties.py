"""What must hold for every cost form, any model and any plan: more speed never hurts, and bounds hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetrl.device_bridge.quantity import Quantity
from hetrl.device_bridge.spec import CpuCost, DeviceSpec, GpuCost, RooflineCost, load_spec
from hetrl.device_bridge.surrogate.cost_model import Answers, Schedules
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.tables import Option, build_tables
from hetrl.device_bridge.surrogate.workload import workload_of
from hetrl.envs.space import PlanSpace
from hetrl.errors import PlanError
from hetrl.objective import Objective
from hetrl.plan import Axis, Memory, Part, Segment
from hetrl.plan_check import check_plan
from hetrl.testing.models import random_decisions, random_graph
from tests.surrogate_help import chain_graph, plan_with

# (device, engine set): two families of GPUs, and processors whose kernels are not known.
SETS = (("d1", "mace"), ("d5", "mace"), ("d1", "tflite"), ("d4", "ncnn"))
COUNT = 24  # random plans per random model
sets, seeds = st.sampled_from(SETS), st.integers(0, 10**6)
few = settings(max_examples=30)


@cache
def space_of(where: tuple[str, str], seed: int) -> PlanSpace:
    device = SurrogateDevice(load_spec(where[0]), random_graph(seed, 1 + seed % 9), where[1])
    return PlanSpace(device, Objective(max_accuracy_drop_pct=5.0))


def plans_of(where: tuple[str, str], seed: int) -> tuple[PlanSpace, Schedules]:
    """A random model and schedules of random decisions about it, one operator after the other."""
    space = space_of(where, seed % 25)
    batch = space.schedules(random_decisions(space, seed, COUNT))[0]
    return space, replace(batch, overlap=np.zeros(COUNT, dtype=bool))


def answers(spec: DeviceSpec, space: PlanSpace, batch: Schedules) -> Answers:
    device = SurrogateDevice(spec, space.graph, space.device.engine_name)
    return device.cost_model().evaluate(batch, None)


def with_faster(spec: DeviceSpec, engine: str, processor: int, names: Sequence[str], factor: float) -> DeviceSpec:
    """A device with some rates of one processor multiplied."""
    found = spec.engines[engine]
    old = found.processors[processor]
    rates: dict[str, Quantity] = {name: getattr(old.cost, name) for name in names}
    faster = {name: msgspec.structs.replace(rate, value=rate.value * factor) for name, rate in rates.items()}
    processors = list(found.processors)
    processors[processor] = msgspec.structs.replace(old, cost=msgspec.structs.replace(old.cost, **faster))
    changed = msgspec.structs.replace(found, processors=tuple(processors))
    return msgspec.structs.replace(spec, engines={**spec.engines, engine: changed})


def test_the_sets_have_every_cost_form() -> None:
    forms = {type(p.cost) for device, engine in SETS for p in load_spec(device).engine(engine).processors}
    assert forms == {CpuCost, GpuCost, RooflineCost}


@pytest.mark.parametrize("suffix", ["ms_per_gmac", "ms_per_mb"])
@given(where=sets, seed=seeds, number=st.integers(0, 5), factor=st.floats(0.02, 1))
@few
def test_more_clock_or_bandwidth_makes_no_plan_slower(
    suffix: str, where: tuple[str, str], seed: int, number: int, factor: float
) -> None:
    space, batch = plans_of(where, seed)
    processor = number % len(space.engine.processors)
    names = [n for n in space.engine.processors[processor].cost.__struct_fields__ if n.endswith(suffix)]
    assert names
    faster = with_faster(space.device.spec, where[1], processor, names, factor)
    before, after = (answers(spec, space, batch) for spec in (space.device.spec, faster))
    assert (after.latency_ms <= before.latency_ms * (1 + 1e-12)).all()
    assert (after.busy_ms <= before.busy_ms * (1 + 1e-12)).all()


@given(sets, seeds)
@few
def test_everything_faster_is_faster(where: tuple[str, str], seed: int) -> None:
    space, batch = plans_of(where, seed)
    spec = space.device.spec
    for processor, found in enumerate(space.engine.processors):
        names = [n for n in found.cost.__struct_fields__ if n.endswith(("ms_per_gmac", "ms_per_mb"))]
        spec = with_faster(spec, where[1], processor, names, 0.5)
    before, after = (answers(s, space, batch).latency_ms for s in (space.device.spec, spec))
    assert (after < before).all()


@given(sets, seeds, st.integers(0, 5), st.floats(0.01, 1))
@few
def test_a_processor_that_is_capped_lower_finishes_no_earlier(
    where: tuple[str, str], seed: int, number: int, factor: float
) -> None:
    space, batch = plans_of(where, seed)
    duty = batch.duty.copy()
    duty[number % len(duty)] *= factor
    before, after = (answers(space.device.spec, space, b) for b in (batch, replace(batch, duty=duty)))
    assert (after.latency_ms >= before.latency_ms).all()
    assert (after.steps.end_ms >= before.steps.end_ms - 1e-9).all()


@given(sets, seeds)
@few
def test_latency_lies_between_the_critical_path_and_everything_in_a_row(where: tuple[str, str], seed: int) -> None:
    """The critical path of a plan in order is its longest chain of slowest parts; idle time is what caps add."""
    space, batch = plans_of(where, seed)
    model = space.device.cost_model()
    found = model.evaluate(batch, None)
    tables, n = model.tables, len(model.tables.workload.items)
    slowest, serial, idle = (np.zeros(COUNT) for _ in range(3))
    for k in range(n):
        offset = np.where(model.chained[batch.option[k]], batch.end[k] - k, 0)
        parts = tables.time_ms[batch.memory[k], k, batch.option[k], offset].T  # (P, B)
        kernels = [
            model.kernel_ms(p, parts[p], batch.queue_window, batch.slice_ms)[0] for p in range(len(parts))
        ]  # queue waits and slices included
        slowest += parts.max(axis=0)
        serial += np.sum(kernels, axis=0)
        idle += sum((kernel / duty - kernel for kernel, duty in zip(kernels, batch.duty, strict=True)), np.zeros(COUNT))
    contention = 1 + model.contention.max()
    sharing = found.steps.transfer_ms.sum(axis=0)
    assert (slowest <= found.latency_ms * (1 + 1e-12)).all()
    assert (found.latency_ms <= (contention * (serial + idle) + sharing) * (1 + 1e-12)).all()


# A split's share of nothing. The plan format has none (shares are 1 to 100 %), and a cut that leaves a part empty is
# impossible in the tables; so what can be tested is the limit: parts grow with their share, up to not splitting.


def test_no_plan_has_a_share_of_nothing() -> None:
    graph = chain_graph(1)
    device = SurrogateDevice(load_spec("d1"), graph)
    gpu, cpu = (p.id for p in reversed(device.engine.processors))
    segment = Segment(
        nodes=graph.group_node_ids(0), parts=(Part(gpu, 100), Part(cpu, 0)), axis=Axis.HEIGHT, memory=Memory.IMAGE
    )
    with pytest.raises(PlanError, match="1 to 100"):
        check_plan(plan_with(device, [segment]), graph)


@pytest.mark.parametrize("where", SETS)
@pytest.mark.parametrize(("axis", "size", "channels"), [(Axis.OUTPUT_CHANNELS, 32, 512), (Axis.HEIGHT, 200, 16)])
def test_a_share_of_nothing_is_not_splitting_in_the_limit(
    where: tuple[str, str], axis: Axis, size: int, channels: int
) -> None:
    spec = load_spec(where[0])
    engine = spec.engine(where[1])
    host = next(i for i, p in enumerate(engine.processors) if p.unit == "cpu")
    workload = workload_of(chain_graph(1, size=size, channels=channels))
    shares = [2, *range(5, 100, 5), 98]  # with 1 %, a part would be too narrow for Winograd
    for accelerator in (p for p in range(len(engine.processors)) if p != host):
        pair = (accelerator, host)
        options = [Option((p,)) for p in range(len(engine.processors))]
        options += [Option(pair, axis, (share, 100 - share)) for share in (0, *shares, 100)]
        tables = build_tables(workload, engine, options)
        first = len(engine.processors)
        assert not tables.possible[0, [first, first + len(shares) + 1]].any()  # 0 and 100 %: nobody's part is nothing
        memory = 0
        times = tables.time_ms[memory, 0, first + 1 : first + 1 + len(shares), 0]  # (shares, P)
        alone = [tables.time_ms[memory, 0, p, 0, p] for p in pair]
        grows, falls = times[:, accelerator], times[:, host]
        assert (np.diff(grows) >= 0).all() and (np.diff(falls) <= 0).all()
        assert grows[-1] <= alone[0] and falls[0] <= alone[1]
        assert grows[-1] == pytest.approx(alone[0], rel=0.1)
        assert falls[0] == pytest.approx(alone[1], rel=0.1)
        work = tables.host_out[0, first + 1 : first + 1 + len(shares), 0]
        assert (np.diff(work) <= 0).all() and work[-1] <= 0.05 * tables.workload.elements[-1] / 1e6


@given(st.sampled_from([w for w in SETS if w[1] != "mace"]), seeds)
@settings(max_examples=15)
def test_part_of_an_operator_takes_no_longer_than_the_whole(where: tuple[str, str], seed: int) -> None:
    """Of processors whose kernels are not known; where they are, a narrow part may get a slower kernel."""
    tables = space_of(where, seed % 25).device.cost_model().tables
    for o, option in enumerate(tables.options):
        if option.axis is Axis.OUTPUT_CHANNELS:
            possible = tables.possible[:, o]
            for p in option.processors:
                part, whole = (tables.time_ms[:, possible, which, 0, p] for which in (o, p))
                assert (part <= whole * (1 + 1e-12)).all()
