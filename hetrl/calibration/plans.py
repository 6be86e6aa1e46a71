"""What the hand policies plan for measured networks under given numbers, as schedules and as features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hetrl.agents.policies.codl_rule import codl_schedule, friendly_memory
from hetrl.agents.policies.mulayer_rule import mulayer_schedule
from hetrl.calibration.linear import Walked, walked
from hetrl.calibration.mace import tables_of_rows
from hetrl.calibration.rows import Cell
from hetrl.device_bridge.spec import Engine
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.plan import Memory

STRATEGIES = ("mace_cpu", "mace_gpu", "mulayer", "codl_buffer", "codl_image", "ideal")
Planned = dict[tuple[str, str, str], Walked]


def walk(cells: Iterable[Cell], engines: Mapping[str, Engine]) -> Planned:
    """The schedule of each cell's strategy on the engine of its phone, as features; `ideal` has none."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell.strategy != "ideal":
            wanted.setdefault((cell.device, cell.model), []).append(cell.strategy)
    found: Planned = {}
    for (phone, model), strategies in wanted.items():
        cost = CostModel(tables_of_rows(model, engines[phone]), idle_w=0.0)
        friendly = friendly_memory(cost.tables)
        codl = codl_schedule(cost, friendly, ratio_step_pct=10) if any("codl" in s for s in strategies) else None
        schedules = [_schedule(cost, strategy, codl) for strategy in strategies]
        features = walked(model, cost, schedules, friendly)
        found |= {(phone, model, s): w for s, w in zip(strategies, features, strict=True)}
    return found


def _schedule(cost: CostModel, strategy: str, codl: Schedule | None) -> Schedule:
    if codl is not None and strategy.startswith("codl_"):
        return _in_memory(codl, Memory(strategy.removeprefix("codl_")))
    if strategy == "mulayer":
        return mulayer_schedule(cost)
    return _alone(cost, strategy.removeprefix("mace_"), friendly_memory(cost.tables))


def _in_memory(schedule: Schedule, memory: Memory) -> Schedule:
    """CoDL's plan does not depend on the memory type that it is executed in."""
    return Schedule(tuple(Placed(s.start, s.end, s.option, memory) for s in schedule.segments))


def _alone(cost: CostModel, unit: str, memory: Memory) -> Schedule:
    processor = [p.unit for p in cost.tables.engine.processors].index(unit)
    return Schedule((Placed(0, len(cost.tables.workload.items) - 1, processor, memory),))
