"""muLayer (Kim et al., EuroSys'19): every operator split over output channels at one coarse ratio.

Its predictor is linear in FLOPs for each processor, so that all operators get the same share: the GPU's is
T_cpu / (T_cpu + T_gpu) of whole-model times, rounded to quarters. Buffer memory on both sides, a join after every
operator. Ignores what sharing costs (that is why it loses on fast phones), load, and the screen. Operators that
cannot be split go to the GPU where it takes them.
"""

from __future__ import annotations

import numpy as np

from hetrl.agents.policies.codl_rule import friendly_memory, gpu_and_cpu
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.device_bridge.surrogate.tables import MEMORIES, Option
from hetrl.plan import Axis, Memory

QUARTERS_PCT = (25, 50, 75)


def gpu_share_pct(model: CostModel) -> int:
    """The GPU's share of every operator: 0, 25, 50, 75 or 100 percent."""
    tables = model.tables
    time = tables.time_ms[MEMORIES.index(friendly_memory(tables)), :, :, 0, :]
    gpu, cpu = gpu_and_cpu(tables)
    on_gpu = np.isfinite(time[:, gpu, gpu])
    t_cpu = float(time[on_gpu, cpu, cpu].sum())
    t_gpu = float(time[on_gpu, gpu, gpu].sum())
    return 25 * round(4 * t_cpu / (t_cpu + t_gpu)) if t_cpu + t_gpu > 0 else 0


def mulayer_schedule(model: CostModel) -> Schedule:
    """muLayer's plan. The tables must hold the quarters among their channel splits."""
    tables = model.tables
    share = gpu_share_pct(model)
    gpu, cpu = gpu_and_cpu(tables)
    split = Option((gpu, cpu), Axis.OUTPUT_CHANNELS, (share, 100 - share))
    wanted = [i for i, option in enumerate(tables.options) if option == split]
    wanted += [gpu, cpu] if share > 0 else [cpu]
    segments = []
    for k in range(len(tables.workload.items)):
        option = next(o for o in wanted if tables.possible[k, o])
        segments.append(Placed(k, k, option, Memory.BUFFER))
    return Schedule(tuple(segments))
