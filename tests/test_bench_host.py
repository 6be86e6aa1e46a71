"""The sample-efficiency benchmark over a recorded machine closes: every plan of its space has an answer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hetrl.agents.base import Kind
from hetrl.device_bridge.recording import Recorder
from hetrl.envs.enumerate import Restriction, enumerate_plans
from hetrl.envs.setting import Setting
from hetrl.profiling import ANY_OUTPUT, AT_REST, whole_plans
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
    bench_host.compress(file, small)
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
