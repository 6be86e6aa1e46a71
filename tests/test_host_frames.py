"""Caps and dropped frames on a machine: how plans say them, what the surrogate makes of them, what really happens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from hetrl.condition import Condition, Ui
from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.channel import LocalChannel
from hetrl.device_bridge.host.device import RunnerDevice
from hetrl.device_bridge.host.loaded import load
from hetrl.device_bridge.host.opening import open_host
from hetrl.device_bridge.runner.frames import FrameCount, FrameProbe, Frames
from hetrl.device_bridge.runner.job import Job
from hetrl.device_bridge.runner.priorities import NO_CAP
from hetrl.device_bridge.runner.priorities import Cap as RunnerCap
from hetrl.device_bridge.runner.protocol import Report, Request
from hetrl.device_bridge.runner.sampling import Sampling
from hetrl.device_bridge.runner_client import Limits, RunnerClient
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.shared_cores import drop_rate
from hetrl.errors import PlanError
from hetrl.measurement import Failure, MeasurementError
from hetrl.partition.stages import stages
from hetrl.plan import Cap, Plan, ProcessCap, decode_plan, encode_plan
from hetrl.testing.devices import whole_model_plans
from hetrl.testing.models import random_decisions, random_graph
from hetrl.zoo.resolve import resolve_model
from tests.host_help import quick_host
from tests.partition_help import CPU, CPU0, CPU1, host_space, host_spec, plan_by_hand
from tests.surrogate_help import D1, chain_graph
from tests.tiny_models import save_tiny_cnn

UI = Ui(60.0, 9.0)
WITH_UI, WITHOUT_UI = Condition(ui=UI), Condition(ui=None)
IDLE, HALF_A_CORE = ProcessCap(idle_priority=True), ProcessCap(quota_cpus=0.5)
GRAPH = chain_graph(6, size=160, channels=64)
DEVICE = SurrogateDevice(host_spec(), GRAPH)
FLAT_OUT = plan_by_hand(GRAPH, [(range(6), CPU)])
IN_GROUPS = plan_by_hand(GRAPH, [([group], CPU) for group in range(6)])
replace = msgspec.structs.replace
seeds = st.integers(0, 10**6)
spans_ms = st.floats(0.5, 150)


def rate(plan: Plan, ui: Ui = UI, device: SurrogateDevice = DEVICE) -> float:
    found = device.measure(plan, Condition(ui=ui)).frame_drop_rate
    assert found is not None
    return found


def latency_ms(plan: Plan) -> float:
    found = DEVICE.measure(plan, WITHOUT_UI).latency_ms
    assert found is not None
    return found


def capped(plan: Plan, duty: float, *names: str) -> Plan:
    return replace(plan, caps=tuple(Cap(name, duty) for name in names or (CPU,)))


class TestPlan:
    @given(st.booleans(), st.none() | st.floats(0.01, 1024))
    def test_a_cap_on_the_process_survives_the_round_trip(self, idle: bool, quota: float | None) -> None:
        if not idle and quota is None:
            return
        plan = replace(FLAT_OUT, process_cap=ProcessCap(idle, quota))
        data = encode_plan(plan)
        assert decode_plan(data) == plan and encode_plan(decode_plan(data)) == data
        assert plan.capped and plan.key != FLAT_OUT.key
        schema = json.loads((resources.files("hetrl") / "schema" / "plan-1.schema.json").read_bytes())
        jsonschema.Draft202012Validator(schema).validate(json.loads(data))

    def test_plans_without_one_are_written_as_they_always_were(self) -> None:
        assert FLAT_OUT.process_cap is UNSET and not FLAT_OUT.capped
        assert b"process_cap" not in encode_plan(FLAT_OUT)

    def test_a_cap_that_caps_nothing_is_an_error(self) -> None:
        with pytest.raises(PlanError, match="caps nothing"):
            ProcessCap()
        for quota in (0.0, -1.0, 2000.0, float("nan"), float("inf")):
            with pytest.raises(PlanError, match="quota_cpus"):
                ProcessCap(quota_cpus=quota)
        text = encode_plan(FLAT_OUT).replace(b'"queue_window"', b'"process_cap": {}, "queue_window"')
        with pytest.raises(PlanError, match="caps nothing"):
            decode_plan(text)

    def test_phones_take_duty_cycles_alone(self) -> None:
        phone = SurrogateDevice(D1, GRAPH)
        plan = whole_model_plans(phone)[0]
        with pytest.raises(PlanError, match=r"process_cap.*duty cycles alone"):
            phone.measure(replace(plan, process_cap=IDLE), WITH_UI)
        assert phone.measure(capped(plan, 0.5, plan.processors[0]), WITH_UI).ok

    def test_segments_of_a_capped_processor_stay_apart(self) -> None:
        assert len(stages(IN_GROUPS, GRAPH)) == 1 == len(stages(capped(IN_GROUPS, 0.5, CPU0), GRAPH))
        assert len(stages(capped(IN_GROUPS, 1.0), GRAPH)) == 1
        assert [stage.groups for stage in stages(capped(IN_GROUPS, 0.5), GRAPH)] == [(g,) for g in range(6)]

    def test_the_space_of_plans_has_no_such_cuts(self) -> None:
        space = host_space(GRAPH)
        for plan in (IN_GROUPS, capped(FLAT_OUT, 0.5)):
            assert space.encode(plan) is not None
        assert space.encode(capped(IN_GROUPS, 0.5)) is None
        assert space.encode(replace(FLAT_OUT, process_cap=IDLE)) is None


def simulated(busy_ms: float, idle_ms: float, ui: Ui, seed: int, frames: int = 1500) -> float:
    """Drop rate of a frame after the other beside runs of contended time whose lengths vary by a tenth."""
    draw = np.random.default_rng(seed)
    count = int(frames * ui.budget_ms / (busy_ms + idle_ms)) + 100
    spans = np.stack([busy_ms * draw.uniform(0.9, 1.1, count), idle_ms * draw.uniform(0.9, 1.1, count)], axis=1)
    edges = np.concatenate([[0.0], np.cumsum(spans)])
    done = np.concatenate([[0.0], np.cumsum((spans * [0.5, 1.0]).ravel())])  # CPU time that a frame would have got
    start, seen, dropped = 0.0, 0, 0
    while seen < frames:
        end = np.interp(np.interp(start, edges, done) + ui.render_ms, done, edges)
        missed = max(0, int(np.ceil((end - start) / ui.budget_ms - 1e-9)) - 1)
        seen, dropped, start = seen + 1 + missed, dropped + missed, start + (1 + missed) * ui.budget_ms
    return dropped / seen


class TestSurrogate:
    def test_the_closed_form_is_a_simulation_of_frames(self) -> None:
        draw = np.random.default_rng(3)
        errors = []
        for seed in range(60):
            busy, idle, ui = 10 ** draw.uniform(0, 2.2), 10 ** draw.uniform(-1, 2.2), Ui(60, draw.uniform(8.5, 14))
            said = drop_rate(np.array([busy]), np.array([busy + idle]), np.ones(1), ui)[0]
            errors.append(abs(said - simulated(busy, idle, ui, seed)))
        assert np.mean(errors) < 0.015 and np.quantile(errors, 0.9) < 0.06 and max(errors) < 0.25

    @given(spans_ms, st.lists(spans_ms, min_size=2, max_size=12), st.floats(1, 16))
    def test_longer_pauses_drop_no_more_frames(self, busy: float, pauses: Sequence[float], render: float) -> None:
        idle = np.sort(np.array(pauses))
        rates = drop_rate(np.full(len(idle), busy), busy + idle, np.ones(len(idle)), Ui(60, render))
        assert (np.diff(rates) <= 1e-12).all() and rates.min() >= 0 and rates.max() <= 0.5
        if render <= 1000 / 60 / 2:
            assert not rates.any()

    @given(seeds, st.floats(1, 16))
    @settings(max_examples=40)
    def test_rates_of_any_plans_are_shares_and_fall_with_the_duty_cycle(self, seed: int, render: float) -> None:
        space = host_space(random_graph(seed % 50, 1 + seed % 6, unsupported=False, size=200))
        ui = Ui(60, render)
        for column in random_decisions(space, seed, 3).T:
            plan = replace(space.plan(column), caps=())
            every = [p.id for p in space.engine.processors]
            rates = [rate(capped(plan, duty, *every), ui, space.device) for duty in (1.0, 0.75, 0.5, 0.25, 0.1)]
            assert all(0 <= found <= 0.5 for found in rates)
            assert rates[1:] == sorted(rates[1:], reverse=True)

    def test_who_keeps_off_a_core_drops_nothing(self) -> None:
        assert rate(FLAT_OUT) == 0.5
        assert rate(plan_by_hand(GRAPH, [(range(6), CPU1)])) == 0
        turns = plan_by_hand(GRAPH, [(range(3), CPU0), (range(3, 6), CPU1)])  # never both at once
        assert rate(turns) == 0
        split = plan_by_hand(GRAPH, [([group], {CPU1: 50, CPU0: 50}) for group in range(6)])
        assert rate(split) > 0

    def test_caps_in_the_order_in_which_they_help(self) -> None:
        assert latency_ms(FLAT_OUT) > 25  # runs of contended time are longer than a frame
        duties = [rate(capped(FLAT_OUT, duty)) for duty in (0.75, 0.5, 0.25)]
        assert 0.5 > duties[0] > duties[1] > duties[2] > 0
        assert rate(capped(IN_GROUPS, 0.5)) < duties[1]  # shorter runs
        assert rate(replace(FLAT_OUT, process_cap=IDLE)) == 0
        assert 0 < rate(replace(FLAT_OUT, process_cap=HALF_A_CORE)) < duties[1]
        assert rate(FLAT_OUT, Ui(60, 4.0)) == 0

    def test_a_quota_costs_what_it_withholds(self) -> None:
        free = latency_ms(FLAT_OUT)
        assert latency_ms(replace(FLAT_OUT, process_cap=HALF_A_CORE)) == pytest.approx(4 * free, rel=0.05)
        assert latency_ms(replace(FLAT_OUT, process_cap=ProcessCap(quota_cpus=2.0))) == free
        assert latency_ms(replace(FLAT_OUT, process_cap=IDLE)) == free
        alone = plan_by_hand(GRAPH, [(range(6), CPU1)])
        assert latency_ms(replace(alone, process_cap=ProcessCap(quota_cpus=1.0))) == latency_ms(alone)
        slowed = DEVICE.measure(replace(FLAT_OUT, process_cap=HALF_A_CORE), WITH_UI)
        assert slowed.segments[-1].end_ms == pytest.approx(slowed.latency_ms)
        assert slowed.frame_drop_rate == rate(replace(FLAT_OUT, process_cap=HALF_A_CORE))

    def test_compiled_code_says_the_same_to_the_last_bit(self) -> None:
        pytest.importorskip("numba")
        from hetrl.device_bridge.surrogate.accelerate import totals_by_numpy, totals_compiled
        from tests.test_compiled import assert_same, random_schedules

        late = 0
        for seed in range(30):
            device = SurrogateDevice(host_spec(), random_graph(seed, 1 + seed % 9, size=200))
            model = device.cost_model()
            batch = random_schedules(model, seed, 60)
            for ui in (None, Ui(60, 9.0), Ui(60, 15.0)):
                expected = totals_by_numpy(model, batch, ui)
                assert_same(totals_compiled(model, batch, ui), expected)
                late += np.count_nonzero(np.nan_to_num(expected.frame_drop_rate))
        assert late > 100

    def test_phones_have_no_cores_to_share(self) -> None:
        phone = SurrogateDevice(D1, GRAPH)
        model = phone.cost_model()
        assert not model.on_machine and not len(model.cores.covers)
        cpu = next(plan for plan in whole_model_plans(phone) if plan.processors[0].startswith("cpu"))
        assert not phone.simulate(cpu, WITH_UI).answers.contended_ms.any() and rate(cpu, device=phone) == 0


class Listener(RunnerClient):
    """Keeps what it is asked, and measures nothing."""

    def __init__(self, folder: Path) -> None:
        store = BlobStore(folder)
        super().__init__(LocalChannel(store), store)
        self.asked: list[tuple[str, Request]] = []
        self.duties: list[float] = []

    def measure(self, job: Job, request: Request) -> Report | MeasurementError:
        self.asked.append(("measure", request))
        self.duties += [piece.duty for piece in job.pieces]
        return MeasurementError(Failure.UNSUPPORTED, "not really")

    def compare(self, jobs: Sequence[Job], request: Request) -> tuple[Report, ...] | MeasurementError:
        self.asked.append(("compare", request))
        return MeasurementError(Failure.UNSUPPORTED, "not really")


def test_the_runner_is_asked_for_what_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETRL_CACHE", str(tmp_path))
    graph = resolve_model(str(save_tiny_cnn(tmp_path / "tiny.onnx")))
    client = Listener(tmp_path)
    device = RunnerDevice(host_spec(), graph, "host", client, load(graph, BlobStore(tmp_path)))
    free = plan_by_hand(graph, [(range(len(graph.groups)), CPU)])
    idle, quota = replace(free, process_cap=IDLE), replace(free, process_cap=HALF_A_CORE)
    device.measure(capped(free, 0.25), WITH_UI)
    device.measure(idle, WITH_UI)
    device.measure(quota, WITHOUT_UI)
    assert [request.cap for _, request in client.asked] == [NO_CAP, RunnerCap(idle=True), RunnerCap(quota_cpus=0.5)]
    assert client.duties == [0.25, 1.0, 1.0]
    screens = [request.screen for _, request in client.asked]
    assert screens[0] is not None and (screens[0].rate_hz, screens[0].work_ms) == (60, 9) and screens[2] is None
    client.asked.clear()
    device.compare([idle, idle], WITHOUT_UI)
    assert client.asked[0][0] == "compare" and client.asked[0][1].cap == RunnerCap(idle=True)
    client.asked.clear()
    device.compare([idle, free], WITHOUT_UI)  # no process is under both
    assert [(do, request.cap) for do, request in client.asked] == [
        ("measure", RunnerCap(idle=True)),
        ("measure", NO_CAP),
    ]


class Counting(FrameProbe):
    """A probe that counts to ten in every window, in which it drops one frame more than in the one before."""

    def __init__(self) -> None:
        super().__init__(60, 1.0, ())
        self.windows = 0

    def restart(self) -> None:
        self.windows += 1

    def read(self) -> Frames:
        return Frames(10, self.windows)


def test_frames_of_windows_that_are_done_again_do_not_count() -> None:
    count = FrameCount(Counting())
    assert count.kept == Frames(0, 0)
    for keep in (True, False, True):
        count.window_ended(keep)
    assert count.kept == Frames(20, 1 + 3)


TRIES = 6
APART = 0.15  # of all frames: flat out some 45 % are dropped, out of the way next to none


def test_inference_drops_frames_unless_it_is_out_of_the_way(tmp_path: Path) -> None:
    """Other programs make frames late as well, so that the two are held against each other, more than once."""
    model = str(save_tiny_cnn(tmp_path / "tiny.onnx", size=512))
    with quick_host(tmp_path, Limits(run_s=60)) as patch:  # whoever is idle may have to wait
        patch.setattr("hetrl.device_bridge.host.device.QUICK", Sampling(max_warmup_runs=2, max_s=0.1, min_repeats=3))
        patch.setattr("hetrl.device_bridge.host.device.FRAMES_S", 1.5)
        with open_host("", resolve_model(model), "onnxruntime") as device:
            flat_out = next(p for p in whole_model_plans(device) if p.processors == (CPU,))
            out_of_the_way = replace(flat_out, process_cap=IDLE)
            seen = []
            for _ in range(TRIES):
                beside, away = (device.measure(plan, WITH_UI) for plan in (flat_out, out_of_the_way))
                assert beside.frame_drop_rate is not None and away.frame_drop_rate is not None
                seen.append((beside.frame_drop_rate, away.frame_drop_rate))
                if beside.frame_drop_rate > away.frame_drop_rate + APART:
                    return
    raise AssertionError(f"frames dropped beside inference, flat out and out of the way: {seen}")
