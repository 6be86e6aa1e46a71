"""The sample-efficiency benchmark over a recorded machine closes: every plan of its space has an answer."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest

from hetrl.agents.base import Kind
from hetrl.condition import AT_REST
from hetrl.device_bridge.recording import Recorded, Recorder
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.enumerate import Restriction, enumerate_plans
from hetrl.envs.setting import Setting
from hetrl.envs.space import PlanSpace
from hetrl.measurement import Failure, Measurement, MeasurementError
from hetrl.objective import Objective
from hetrl.plan import Evidence, Plan
from hetrl.profiling import ANY_OUTPUT, whole_plans
from hetrl.testing.models import random_decisions, random_graph
from hetrl.zoo.resolve import resolve_model
from tests.machine_help import Truth

ROOT = Path(__file__).parents[1]


def test_record_compress_and_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import bench_host

    monkeypatch.setattr(bench_host, "ROOT", tmp_path)
    graph = resolve_model(str(bench_host.network(tmp_path / "six.onnx")))
    within = Restriction(processors=bench_host.PROCESSORS, splits=False, overlap=False)
    machine = Truth(seed=8).device(graph, noise=0.02, disturbed=0.0)
    file, small = tmp_path / "all.jsonl", tmp_path / "all.jsonl.gz"
    space = Setting.on(machine, AT_REST, ANY_OUTPUT).space
    anchor = whole_plans(space)[bench_host.PROCESSORS[0]]
    with Recorder(machine, file) as recorder:
        for plan in enumerate_plans(space, 3**6, within):
            recorder.measure(plan, AT_REST)
            recorder.measure(anchor, AT_REST)
    bench_host.compress(file, small, anchor.key)
    assert small.stat().st_size < 2**20
    plans, best_ms = bench_host.check(small)
    assert plans == 3**6
    outcomes = [
        bench_host.run(small, best_ms, name, kind, 0, seeded)
        for name, kind in (("auto", Kind.AGENT), ("random", Kind.SAMPLER), ("tpe", Kind.SAMPLER))
        for seeded in (False, True)
    ]
    assert all(o.needed == o.evaluations and o.best_ms <= 1.05 * best_ms for o in outcomes)
    header = bench_host.recorded(small)[0]
    assert "| auto | " in bench_host.markdown(outcomes, plans, best_ms, header)
    sys.modules.pop("bench_host")


def test_a_plan_is_measured_until_two_measurements_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import bench_host

    space = PlanSpace(SurrogateDevice(load_spec("d1"), random_graph(1, 6)), Objective())
    plan, anchor = (space.plan(column) for column in random_decisions(space, 0, 2).T)

    def record(of: Plan, *samples_ms: float, foreign: bool = False) -> Recorded:
        times = {"latency_ms": statistics.median(samples_ms), "samples_ms": samples_ms} if samples_ms else {}
        error = None if samples_ms else MeasurementError(Failure.TIMEOUT, "")
        measured = Measurement(evidence=Evidence.MEASURED, error=error, foreign_load=foreign, **times)
        return Recorded(condition="cold", plan=of, measurement=measured)

    def pairs(*records: Recorded) -> list[bench_host.Pair]:
        return bench_host.measured_pairs(records, anchor.key).get(plan.key, [])

    once, again = (record(plan, 4.0, 6.0, 5.0), record(anchor, 2.0, 3.0, 2.0)), (record(plan, 6.0), record(anchor, 3.0))
    assert [pair.ratio for pair in pairs(*once)] == [2.0] and not bench_host.settled(pairs(*once))
    assert bench_host.settled(pairs(*once, *again))
    assert not bench_host.settled(pairs(*once, record(plan, 6.6), record(anchor, 3.0)))
    assert pairs(record(plan, 5.0, foreign=True), record(anchor, 2.0)) == []
    assert [pair.ratio for pair in pairs(once[0], *again)] == [2.0]  # killed before the anchor's line
    assert pairs(record(plan, 5.0, 5.0), record(anchor, 2.0))[0].ratio is None  # not in turns
    fails = (record(plan), record(anchor, 2.0))
    assert not bench_host.settled(pairs(*fails)) and bench_host.settled(pairs(*fails, *fails))
    unlike = [r for n in range(bench_host.TIMES) for r in (record(plan, 1.1**n), record(anchor, 1.0))]
    assert not bench_host.settled(pairs(*unlike[:-2])) and bench_host.settled(pairs(*unlike))
    sys.modules.pop("bench_host")
