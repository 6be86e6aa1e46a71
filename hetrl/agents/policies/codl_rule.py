"""CoDL (Jia et al., MobiSys'22): each operator split between CPU and GPU, neighbours joined to chains.

Step 1: per operator the best of axis (height, output channels) and ratio (tenths, none and all included), by
predicted sharing + slowest part. Step 2: greedily from the first operator on, the chain (height, one ratio within
0.3 of its head's, at most 30 long) that saves most against step 1; then on from its end. Ignores contention between
the processors, DVFS and load, the screen, and everything but its two processors. Its predictor takes the wait for each
other as 1 ms, about twice what it is, so that operators which a split would help little stay whole.

The planner assumes the memory type that the GPU likes. Under the other type the same plan is executed: that is what
CoDL's published bars of the unfriendly type are (no planner that saw its cost would keep such a plan).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hetrl.agents.policies.base import sharing_gpu
from hetrl.device_bridge.spec import GpuCost
from hetrl.device_bridge.surrogate.chains import chain_costs, position_work
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.device_bridge.surrogate.tables import MELEMS, MEMORIES, Tables, link_of
from hetrl.plan import DEFAULT_QUEUE_WINDOW, Memory

Floats = npt.NDArray[np.float64]
CHAIN_RATIO_REACH_PCT = 30  # how far a chain's ratio may be from its head's own best
PLANNED_SYNC_MS = 1.0  # section 5.1: the predictor's constant


def gpu_and_cpu(tables: Tables) -> tuple[int, int]:
    """Numbers of the two processors that share operators; as options they are each alone."""
    gpu = sharing_gpu(tables.engine)
    assert gpu is not None  # or the policy does not apply
    return gpu, [p.unit for p in tables.engine.processors].index("cpu")


def friendly_memory(tables: Tables) -> Memory:
    """The memory type that the GPU likes."""
    cost = tables.engine.processors[gpu_and_cpu(tables)[0]].cost
    assert isinstance(cost, GpuCost)
    return cost.friendly_memory


def codl_schedule(model: CostModel, memory: Memory, *, chains: bool = True, ratio_step_pct: int = 10) -> Schedule:
    """CoDL's plan, executed in `memory`; the tables may hold finer ratios than the planner tries."""
    tables, plan_memory = model.tables, friendly_memory(model.tables)
    work = _work_ms(model)
    tried = _tried(tables, ratio_step_pct)
    alone = np.where(tried, _alone_ms(model, work, plan_memory), np.inf)
    best = alone.argmin(axis=1)
    alone_ms = alone.min(axis=1)
    costs = chain_costs(model, work, plan_memory)
    chain_ms = costs.work_ms + costs.share_ms + costs.tail_ms + _believed_wait_ms(tables)
    n = len(best)
    segments: list[Placed] = []
    head = 0
    while head < n:
        placed = Placed(head, head, int(best[head]), memory)
        ratio = _accelerator_pct(tables, int(best[head]))
        gain = 0.0
        for s, option in enumerate(costs.options if chains else ()):
            share = tables.options[option].shares_pct[0]
            if not tried[option] or abs(share - ratio) > CHAIN_RATIO_REACH_PCT:
                continue
            for offset in range(1, min(costs.work_ms.shape[1], n - head)):
                saved = float(alone_ms[head : head + offset + 1].sum() - chain_ms[head, offset, s])
                if not saved >= 0:
                    break
                if saved > gain:
                    gain, placed = saved, Placed(head, head + offset, int(option), memory)
        segments.append(placed)
        head = placed.end + 1
    return Schedule(tuple(segments))


def single_choices(model: CostModel, ratio_step_pct: int = 10) -> list[int]:
    """Step 1 alone: the GPU's share in percent that the planner gives each operator by itself."""
    tables = model.tables
    alone = np.where(_tried(tables, ratio_step_pct), _alone_ms(model, _work_ms(model), friendly_memory(tables)), np.inf)
    return [_accelerator_pct(tables, int(option)) for option in alone.argmin(axis=1)]


def _tried(tables: Tables, ratio_step_pct: int) -> list[bool]:
    """The options that the planner considers."""
    pair = set(gpu_and_cpu(tables))
    return [o.shares_pct[0] % ratio_step_pct == 0 and set(o.processors) <= pair for o in tables.options]


def _work_ms(model: CostModel) -> Floats:
    duty = (1.0,) * len(model.tables.engine.processors)
    return position_work(model, friendly_memory(model.tables), DEFAULT_QUEUE_WINDOW, np.inf, duty)


def _accelerator_pct(tables: Tables, option: int) -> int:
    """GPU share in percent of any option."""
    chosen = tables.options[option]
    if chosen.split:
        return chosen.shares_pct[0]
    return 0 if tables.engine.processors[chosen.processors[0]].unit == "cpu" else 100


def _alone_ms(model: CostModel, work: Floats, memory: Memory) -> Floats:
    """(n, O) each operator by itself, with operands and result in the GPU's memory."""
    tables = model.tables
    m = MEMORIES.index(memory)
    fixed, rate = (a[:, m] for a in model.share_rates)
    link = link_of(tables.engine, gpu_and_cpu(tables)[0])
    cost = np.where(tables.possible, work[:, :, 0], np.inf)
    elements = tables.workload.elements
    for k, item in enumerate(tables.workload.items):
        for o, option in enumerate(tables.options):
            if option.split:
                shared = sum(read[o, 0] for read in tables.host_in[k])
                cost[k, o] += fixed[o] + rate[o] * (shared + tables.host_out[k, o, 0]) + _believed_wait_ms(tables)
            elif tables.engine.processors[option.processors[0]].unit == "cpu":
                per_melem = link.map_ms_per_melem.value
                per_melem += link.image_ms_per_melem.value if memory is Memory.IMAGE else 0.0
                moved = sum(elements[r.tensor] for r in item.reads) + sum(elements[t] for t in item.writes)
                cost[k, o] += link.map_ms.value + PLANNED_SYNC_MS + per_melem * moved / MELEMS
    return cost


def _believed_wait_ms(tables: Tables) -> float:
    """By how much the planner's wait is longer than the device's."""
    return PLANNED_SYNC_MS - link_of(tables.engine, gpu_and_cpu(tables)[0]).sync_ms.value
