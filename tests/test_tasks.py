"""Several models at once: Band's schedulers and whole plans, by hand and on random tasks."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrl.agents.policies import find_policy
from hetrl.agents.policies.unit_subgraphs import Floats, profile
from hetrl.agents.problem import Problem
from hetrl.cli.main import run as run_cli
from hetrl.condition import parse_condition
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.errors import UnknownName, UsageError
from hetrl.objective import Objective
from hetrl.plan import encode_plan
from hetrl.tasks.compare import compare_tasks
from hetrl.tasks.planner import best_plans, candidate, candidates
from hetrl.tasks.results import latencies, missed, score, utilization
from hetrl.tasks.schedulers import BAND_SCHEDULERS, band_scheduler, whole
from hetrl.tasks.simulation import Run, Scheduler, State, simulate
from hetrl.tasks.streams import Stream, Task, check_streams
from hetrl.zoo.resolve import resolve_model
from tests.surrogate_help import D1, latency_ms
from tests.tiny_models import save_tiny_cnn

inf = float("inf")
LATE = 1e6  # a deadline that everything meets


def single(*times_ms: float, home: int = 0) -> Task:
    """A model of one unit, with its time on each processor."""
    table = np.array(times_ms).reshape(1, 1, -1)
    return Task(table, table, (home,))


def table_of(*units: tuple[float, ...]) -> Floats:
    """Times of each unit on each processor; runs of units take the sum."""
    count, workers = len(units), len(units[0])
    table = np.full((count, count, workers), inf)
    for first in range(count):
        for last in range(first, count):
            table[first, last] = np.sum(units[first : last + 1], axis=0)
    return table


def once(deadline_ms: float = LATE, first_ms: float = 0.0) -> Stream:
    """One request."""
    return Stream("model", LATE, deadline_ms, first_ms)


def ends(
    scheduler: str | Scheduler, streams: list[Stream], tasks: list[Task], contention: float = 0.0, until: float = 1000.0
) -> list[float | None]:
    """When each request ended, in the order of arrival."""
    chosen = band_scheduler(scheduler, 0) if isinstance(scheduler, str) else scheduler
    return [r.end_ms for r in simulate(streams, tasks, chosen, contention, until).requests]


def test_fixed_waits_for_its_worker_where_round_robin_takes_the_next_one() -> None:
    streams, tasks = [once(), once()], [single(10, 15), single(10, 15)]
    assert ends("band_fixed", streams, tasks) == [10, 20]
    assert ends("band_rr", streams, tasks) == [10, 15]


def test_fixed_sends_what_its_worker_does_not_take_to_the_cpu() -> None:
    task = Task(*[table_of((50, 2), (5, inf), (50, 3))] * 2, home=(1,))
    assert ends("band_fixed", [once()], [task]) == [10]
    assert ends("band_rr", [once()], [task]) == [105]  # the first idle worker takes all it can


def test_sel_takes_the_request_that_takes_longest_and_queues_its_first_subgraph() -> None:
    # Best latencies 10, 20 and 16: the second goes first. Then 30 and 36: the third waits behind it until 36, which
    # leaves worker 1 to the first (30 < 36 + 10).
    tasks = [single(10, 30), single(20, 22), single(16, 40)]
    assert ends("band_sel", [once()] * 3, tasks) == [30, 20, 36]
    # 24 is more than 20, so worker 0 begins the first. Its second unit is not queued yet, so worker 1 takes the other
    # one (21 < 12 + 20), behind which that unit waits at 12.
    halves = Task(*[table_of((12, inf), (inf, 12))] * 2, home=(0,))
    assert ends("band_sel", [once()] * 2, [halves, single(20, 21)]) == [33, 21]


def test_heft_waits_for_the_faster_worker_and_lets_the_longer_request_go_first() -> None:
    short, long = single(10, 100), single(30, 100)
    streams = [once(), once(), once(first_ms=5)]
    # SEL queues both short ones at once; HEFT keeps the second, and at 10 the long one is more urgent.
    assert ends("band_sel", streams, [short, short, long]) == [10, 20, 50]
    assert ends("band_heft", streams, [short, short, long]) == [10, 50, 40]
    # A slow worker that ends sooner than waiting does is taken: 2 * 60 > 100.
    assert ends("band_heft", [once()] * 2, [single(60, 100)] * 2) == [60, 100]


def test_reservation_keeps_a_worker_free_for_what_comes_next() -> None:
    first = Task(*[table_of((10, inf, inf), (inf, 10, inf))] * 2, home=(0,))
    second = single(100, 15, 20)
    streams = [once(), once(first_ms=1)]
    assert ends("band_heft", streams, [first, second]) == [26, 16]  # the second takes worker 1 from 1 to 16
    assert ends("band_heft_reserved", streams, [first, second]) == [20, 21]  # worker 1 is spoken for until 20


def test_least_slack_goes_first_and_what_is_late_is_dropped() -> None:
    tasks = [single(10), single(10), single(10)]
    streams = [once(100), once(15), once(18)]
    # Slack 90, 5 and 8; once the second one runs the third cannot end before 20.
    run = simulate(streams, tasks, band_scheduler("band_lst", 0), 0.0, 1000.0)
    assert [r.end_ms for r in run.requests] == [20, 10, None]
    assert [r.dropped for r in run.requests] == [False, False, True]
    assert [missed(r) for r in run.requests] == [False, False, True]
    assert ends("band_heft", streams, tasks) == [10, 20, 30]  # in the order they came


def test_processors_that_work_at_once_slow_each_other_down() -> None:
    tasks = [single(10, inf), single(inf, 10, home=1)]
    assert ends("band_sel", [once(), once()], tasks, contention=0.1) == pytest.approx([11, 11])
    # From 5 on both are slow: the first has 5 left and ends at 10.5, when the second has 5 left.
    assert ends("band_sel", [once(), once(first_ms=5)], tasks, contention=0.1) == pytest.approx([10.5, 15.5])


def test_plans_hold_all_their_processors_in_the_order_of_arrival() -> None:
    both = Task(*[np.full((1, 1, 2), 10.0)] * 2, home=(0, 1))
    streams = [once(), once(first_ms=1), once(first_ms=2)]
    # The third could start on processor 1 at 2, but the second came first and wants both.
    assert ends(whole, streams, [single(10, inf), both, single(inf, 5, home=1)]) == [10, 20, 25]


def test_the_estimate_is_a_moving_average_of_what_was_seen() -> None:
    told, true = np.array([[[10.0, 25.0]]]), np.array([[[40.0, 25.0]]])
    seen: list[float] = []
    heft = band_scheduler("band_heft", 0)

    def watched(state: State) -> None:
        seen.append(float(state.expected_ms[0][0, 0, 0]))
        heft(state)

    streams = [Stream("model", 100.0, 100.0)]
    run = simulate(streams, [Task(told, true, (0,))], watched, 0.0, 1000.0)
    assert seen[:5] == pytest.approx([10, 13, 13, 15.7, 15.7])  # 0.1 * 40 + 0.9 * 10, ...
    used = [e.piece.processors[0] for e in run.executions]
    assert used == [0] * 7 + [1] * 3  # 40 - 30 * 0.9**7 = 25.7: by then the other worker looks better
    assert told[0, 0, 0] == 10.0  # the profile itself stays


def random_tasks(seed: int) -> tuple[list[Stream], list[Task], float]:
    draw = np.random.default_rng(seed)
    workers = int(draw.integers(1, 4))
    streams, tasks = [], []
    for number in range(draw.integers(1, 4)):
        units = draw.uniform(1, 20, (draw.integers(1, 4), workers))
        units[:, 1:][draw.random((len(units), workers - 1)) < 0.3] = inf
        told = table_of(*map(tuple, units))
        tasks.append(Task(told, told * draw.choice([1.0, 1.5]), (int(draw.integers(workers)),)))
        period = float(draw.choice([10.0, 25.0, 40.0]))
        streams.append(
            Stream(f"m{number}", period, float(draw.choice([15.0, 40.0, 200.0])), float(draw.choice([0, 7])))
        )
    return streams, tasks, float(draw.choice([0.0, 0.09]))


@given(st.sampled_from(BAND_SCHEDULERS), st.integers(0, 10**6))
def test_a_run_conserves_work_under_every_scheduler(name: str, seed: int) -> None:
    streams, tasks, contention = random_tasks(seed)
    run = simulate(streams, tasks, band_scheduler(name, 0), contention, 120.0)
    assert len(run.requests) == sum(len(s.arrivals_ms(120.0)) for s in streams)
    assert all((r.end_ms is None) == r.dropped for r in run.requests)
    assert name == "band_lst" or not any(r.dropped for r in run.requests)
    workers = tasks[0].actual_ms.shape[2]
    for p in range(workers):  # one thing at a time
        spans = sorted((e.start_ms, e.end_ms) for e in run.executions if p in e.piece.processors)
        assert all(a[1] <= b[0] + 1e-6 for a, b in pairwise(spans))
    assert all(0 <= share <= 1 + 1e-9 for share in utilization(run, [str(p) for p in range(workers)]).values())
    for request in run.requests:
        own = [e for e in run.executions if e.piece.request is request]
        units = [u for e in own for u in range(e.piece.first, e.piece.last + 1)]
        assert units == list(range(len(units)))  # in order, none twice
        assert request.dropped or len(units) == len(tasks[request.stream].actual_ms)
        starts = [request.arrival_ms, *(e.end_ms for e in own)]
        assert all(e.start_ms >= before - 1e-6 for e, before in zip(own, starts, strict=False))
        for e in own:
            alone = tasks[request.stream].actual_ms[e.piece.first, e.piece.last, e.piece.processors[0]]
            assert alone - 1e-6 <= e.end_ms - e.start_ms <= alone * (1 + contention) + 1e-6


@given(st.sampled_from(BAND_SCHEDULERS), st.integers(0, 10**6))
def test_the_same_input_gives_the_same_run(name: str, seed: int) -> None:
    def times() -> list[tuple[float, float]]:
        streams, tasks, contention = random_tasks(seed)
        run = simulate(streams, tasks, band_scheduler(name, 0), contention, 120.0)
        return [(e.start_ms, e.end_ms) for e in run.executions]

    assert times() == times()


def test_percentiles_are_some_requests_own_latency() -> None:
    streams = [Stream("model", 10.0, 25.0)]
    run = simulate(streams, [single(12)], whole, 0.0, 100.0)  # each request ends 2 ms later than the one before
    told = latencies(run.requests)
    assert told is not None
    assert (told.mean_ms, told.median_ms, told.p90_ms, told.max_ms) == pytest.approx((21, 20, 28, 30))
    assert score(run) == (3, 0, pytest.approx(21))  # 26, 28 and 30 ms
    assert utilization(run, ["cpu"]) == {"cpu": pytest.approx(1.0)}
    assert latencies(Run((), (), 1.0).requests) is None


def test_one_request_takes_what_the_hand_policy_promises() -> None:
    device = SurrogateDevice(D1, resolve_model("resnet18"))
    table = profile(device).expected_ms
    for name in BAND_SCHEDULERS:
        run = simulate([once()], [Task(table, table, (1,))], band_scheduler(name, 0), 0.09, 10.0)
        assert run.requests[0].end_ms == pytest.approx(latency_ms(device, find_policy(name).plan(device)))


def problem(model: str) -> Problem:
    return Problem.of(model, "d1", engine=None, condition="cold", objective=Objective(), input_shapes=None)


def test_candidates_are_the_fastest_on_each_set_of_processors() -> None:
    asked = problem("resnet18")
    found = candidates(asked, [])
    assert len({c.task.home for c in found}) == len(found) == 3
    assert [c.latency_ms for c in found] == sorted(c.latency_ms for c in found)
    plans = {name: candidate(name, plan, asked) for name, plan in asked.hand_plans()}
    kept = [c.latency_ms for c in plans.values() if c is not None and c.accuracy_drop_pct == 0]
    assert min(kept) == found[0].latency_ms


def test_the_planner_spreads_models_that_both_want_the_same_processor() -> None:
    asked = problem("resnet18")
    streams = [Stream("resnet18", 60.0, 60.0)] * 3
    choices = [candidates(asked, [])] * 3
    chosen, run = best_plans(streams, choices, 0.09, 600.0)
    selfish = simulate(streams, [c[0].task for c in choices], whole, 0.09, 600.0)
    assert score(run) < score(selfish)
    assert len({c.task.home for c in chosen}) > 1


@pytest.mark.parametrize(
    ("models", "periods", "engine", "drop"),
    [
        (["vgg16", "resnet18"], [200.0, 100.0], None, 0.0),
        (["resnet50", "yolov2", "regnetx_1_6gf"], [100.0], "tflite", 1.0),
        (["resnet50", "yolov2"], [50.0], "tflite", 0.0),
    ],
)
def test_hetrl_is_never_worse_than_what_stands_beside_it(
    models: list[str], periods: list[float], engine: str | None, drop: float
) -> None:
    told = compare_tasks(
        models, "d1", period_ms=periods, engine=engine, objective=Objective(max_accuracy_drop_pct=drop), duration_ms=800
    )
    assert told.rows[0].keeps_budgets or drop == 0
    kept = [row for row in told.rows if row.keeps_budgets]
    assert told.winner == kept[0].scheduler == "hetrl"
    assert {row.scheduler for row in told.rows} == {*BAND_SCHEDULERS, "exact", "hetrl"}
    for row in told.rows:
        assert row.misses == sum(s.misses for s in row.streams)
        assert sum(s.requests for s in row.streams) == sum(s.finished + s.dropped for s in row.streams)
        uses_int8 = row.utilization.get("dsp/tflite/int8", 0.0) > 0
        assert (row.accuracy_drop_pct > 0) == uses_int8
        assert row.keeps_budgets == (row.accuracy_drop_pct <= drop)


def test_schedulers_are_told_of_a_cold_phone_and_live_on_the_one_that_is_there() -> None:
    told = compare_tasks(["resnet18"], "d1", period_ms=[200.0], schedulers=["band_heft"], condition="sigma2")
    device = SurrogateDevice(D1, resolve_model("resnet18"))
    hot = device.measure(find_policy("band_heft").plan(device), parse_condition("sigma2")).latency_ms
    (row,) = told.rows
    assert told.profiled == "cold" and row.latency_ms is not None and hot is not None
    assert row.latency_ms.max_ms == pytest.approx(hot)
    assert hot > 1.2 * latency_ms(device, find_policy("band_heft").plan(device))


def test_given_plans_have_a_row(tmp_path: Path) -> None:
    device = SurrogateDevice(D1, resolve_model("resnet18"))
    path = tmp_path / "learnt.json"
    path.write_bytes(encode_plan(find_policy("mace_cpu").plan(device)))
    models = ["resnet18", "vgg16"]
    told = compare_tasks(models, "d1", period_ms=[400.0], plans=[path], schedulers=["hetrl"], duration_ms=800)
    rows = {row.scheduler: row for row in told.rows}
    assert [s.runs for s in rows["plans"].streams] == ["learnt.json", "exact"]
    with pytest.raises(UsageError, match="not asked for"):
        compare_tasks(["vgg16"], "d1", period_ms=[400.0], plans=[path])
    with pytest.raises(UsageError, match="second plan"):
        compare_tasks(models, "d1", period_ms=[400.0], plans=[path, path])


def test_any_onnx_model_can_be_a_stream(tmp_path: Path) -> None:
    path = str(save_tiny_cnn(tmp_path / "tiny.onnx"))
    told = compare_tasks([path, "resnet18"], "d1", period_ms=[50.0], schedulers=["band_rr"], duration_ms=200)
    assert [s.model for s in told.rows[0].streams] == [path, "resnet18"]


def test_streams_refuse_what_makes_no_sense() -> None:
    for period, deadline in ((0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0), (inf, 1.0)):
        with pytest.raises(UsageError, match="is not above 0"):
            Stream("model", period, deadline)
    for streams, duration, match in (
        ([], 100.0, "0 models"),
        ([once()] * 7, 100.0, "7 models"),
        ([once()], 0.0, "duration"),
        ([once()], float("nan"), "duration"),
        ([Stream("model", 1.0, 1.0)], 1e6, "1000000 requests"),
    ):
        with pytest.raises(UsageError, match=match):
            check_streams(streams, duration)
    with pytest.raises(UnknownName, match="did you mean 'band_heft'"):
        compare_tasks(["resnet18"], "d1", period_ms=[33.0], schedulers=["band_hef"])


TASKS = ["tasks", "--device", "d1", "--model", "resnet18", "--model", "vgg16"]


def test_the_command_prints_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli([*TASKS, "--period", "200", "--slo", "100", "--slo", "300", "--duration", "600", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"][0]["scheduler"] == told["winner"] == "hetrl"
    assert len(told["rows"]) == 8 and told["evidence"] == "predicted"
    assert [(s["model"], s["deadline_ms"], s["requests"]) for s in told["rows"][0]["streams"]] == [
        ("resnet18", 100, 3),
        ("vgg16", 300, 3),
    ]


def test_the_command_shows_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli([*TASKS, "--period", "300", "--scheduler", "band_sel", "--duration", "300"]) == 0
    shown = capsys.readouterr().out
    assert "band_sel: 0 of 2 requests miss their deadline (predicted)" in shown
    assert "band_heft" not in shown


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--period", "0"], "period_ms 0 is not above 0"),
        (["--period", "1", "--period", "2", "--period", "3"], "3 of --period do not go with 2 of --model"),
        (["--period", "9", "--slo", "-1"], "deadline_ms -1 is not above 0"),
        (["--period", "9", "--duration", "-1"], "duration of -1 ms"),
        (["--period", "9", "--scheduler", "band_hefd"], "did you mean 'band_heft'"),
        (["--period", "9", "--condition", "warm"], "unknown condition 'warm'"),
        (["--period", "9", "--plan", "nowhere.json"], "nowhere.json"),
        ([], "--period"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], match: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli([*TASKS, *arguments]) == 2
    told = capsys.readouterr()
    assert not told.out and told.err.count("\n") == 1 and match in told.err
