"""What a cap on the whole process does to predictions; see `plan.ProcessCap`.

A quota lets the process run until it has used its CPU time of a period of the kernel (0.1 s, the default of
Documentation/scheduler/sched-bwc.rst) and then stops all of its threads until the next one. So a plan that wants more
cores' worth of CPU time than it gets takes that many times as long, and is busy in as many runs as there are periods.
Idle priority costs nothing where nobody else works.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hetrl.condition import Ui
from hetrl.device_bridge.surrogate.cost_model import Answers, CostModel, Schedules, Steps
from hetrl.device_bridge.surrogate.shared_cores import EQUAL_SHARE, SHARE_BESIDE_IDLE, drop_rate
from hetrl.plan import ProcessCap

QUOTA_PERIOD_MS = 100.0


def under_cap(model: CostModel, batch: Schedules, free: Answers, cap: ProcessCap, ui: Ui | None) -> Answers:
    """The answers of a machine's `model` for `batch`, which are `free` without the cap."""
    longer = np.ones_like(free.latency_ms)
    if cap.quota_cpus is not None:
        threads = np.array([len(p.cores) for p in model.tables.engine.processors], dtype=np.float64)
        wanted_ms, given_ms = threads @ free.busy_ms, cap.quota_cpus * free.latency_ms
        possible = np.isfinite(given_ms) & (given_ms > 0)
        longer = np.maximum(1.0, np.divide(wanted_ms, given_ms, out=longer, where=possible))
    latency_ms = free.latency_ms * longer
    drop = free.frame_drop_rate
    if ui is not None:
        runs = model.cores.runs(batch)
        stops = np.where(longer > 1, latency_ms / QUOTA_PERIOD_MS, 0.0)
        share = SHARE_BESIDE_IDLE if cap.idle_priority else EQUAL_SHARE
        drop = drop_rate(free.contended_ms, latency_ms, np.maximum(runs, stops), ui, share)
    steps = free.steps
    return replace(
        free,
        latency_ms=latency_ms,
        frame_drop_rate=drop,
        energy_mj=free.energy_mj + model.idle_w * (latency_ms - free.latency_ms),
        steps=Steps(steps.begin_ms * longer, steps.transfer_ms * longer, steps.work_ms * longer, steps.end_ms * longer),
    )
