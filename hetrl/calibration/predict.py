"""What hetrl's own machinery gives for a measured cell, stage 2 of the fit, and held-out errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hetrl.agents.policies.codl_rule import codl_schedule, friendly_memory
from hetrl.agents.policies.mulayer_rule import mulayer_schedule
from hetrl.calibration.fit import FAMILY, FRIENDLY, MODELS, PHONES, Fit, engine_of, fit_singles, tables_of_rows
from hetrl.calibration.rows import Cell, cells
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule, batch_of
from hetrl.device_bridge.surrogate.tables import MEMORIES, Tables
from hetrl.plan import Memory

STRATEGIES = ("mace_cpu", "mace_gpu", "mulayer", "codl_buffer", "codl_image", "ideal")
UNFRIENDLY_RANGE = (1.5, 9.0)


@dataclass(frozen=True)
class CellError:
    """A cell with its prediction; `error` is predicted / measured - 1."""

    cell: Cell
    predicted_ms: float

    @property
    def error(self) -> float:
        return self.predicted_ms / self.cell.latency_ms - 1


class Predictor:
    """Predicts cells under one fit; schedules of the planners are kept, since sharing costs alone decide them."""

    def __init__(self, fit: Fit) -> None:
        self.fit = fit
        self._schedules: dict[tuple[str, str, str], Schedule] = {}

    def latency_ms(self, device: str, model: str, strategy: str) -> float:
        """Predicted latency of a network of the rows."""
        engine = engine_of(self.fit, device)
        tables = tables_of_rows(model, engine)
        if strategy == "ideal":
            return ideal_ms(tables)
        cost = CostModel(tables, idle_w=0.0)
        schedule = self._schedule(cost, device, model, strategy)
        batch = batch_of([schedule], len(tables.workload.items), len(engine.processors))
        return float(cost.evaluate(batch, ui=None).latency_ms[0])

    def with_fit(self, fit: Fit) -> Predictor:
        """The same planners' schedules under other co-execution numbers."""
        other = Predictor(fit)
        other._schedules = self._schedules
        return other

    def _schedule(self, cost: CostModel, device: str, model: str, strategy: str) -> Schedule:
        key = (device, model, strategy)
        if key not in self._schedules:
            self._schedules[key] = _plan(cost, strategy)
        return self._schedules[key]


def _plan(cost: CostModel, strategy: str) -> Schedule:
    tables = cost.tables
    if strategy == "mulayer":
        return mulayer_schedule(cost)
    if strategy in ("codl_buffer", "codl_image"):
        return codl_schedule(cost, Memory(strategy.removeprefix("codl_")), ratio_step_pct=10)
    processor = [p.unit for p in tables.engine.processors].index(strategy.removeprefix("mace_"))
    last = len(tables.workload.items) - 1
    return Schedule((Placed(0, last, processor, friendly_memory(tables)),))


def ideal_ms(tables: Tables) -> float:
    """CoDL's "Ideal": each operator at its best axis and ratio, sharing and contention for nothing."""
    time = tables.time_ms[MEMORIES.index(friendly_memory(tables)), :, :, 0, :].max(axis=-1)
    return float(np.where(tables.possible, time, np.inf).min(axis=1).sum())


def fit_all(train: Sequence[Cell], ratio_models: Iterable[str] = MODELS) -> Fit:
    """Both stages on the given cells."""
    fit = fit_coexecution(fit_singles(train, ratio_models), train)
    return fit


def fit_coexecution(fit: Fit, train: Sequence[Cell]) -> Fit:
    """Stage 2: contention from CoDL under the friendly type, then each phone's unfriendly factor from the rest."""
    base = Predictor(replace(fit, contention=0.0))
    friendly = [c for c in train if c.strategy == f"codl_{FRIENDLY[FAMILY[c.device]].value}"]
    without = np.array([base.latency_ms(c.device, c.model, c.strategy) for c in friendly])
    full = base.with_fit(replace(fit, contention=1.0))
    slope = np.array([full.latency_ms(c.device, c.model, c.strategy) for c in friendly]) - without
    measured = np.array([c.latency_ms for c in friendly])
    grid = np.linspace(0.0, 0.4, 401)
    errors = [np.abs(np.log((without + g * slope) / measured)).mean() for g in grid]
    fit = replace(fit, contention=float(grid[int(np.argmin(errors))]))
    unfriendly = {phone: _fit_unfriendly(fit, base, phone, train) for phone in PHONES}
    return replace(fit, unfriendly=unfriendly)


def _fit_unfriendly(fit: Fit, base: Predictor, phone: str, train: Sequence[Cell]) -> float:
    other = Memory.BUFFER if FRIENDLY[FAMILY[phone]] is Memory.IMAGE else Memory.IMAGE
    wanted = [f"codl_{other.value}"] + (["mulayer"] if other is Memory.BUFFER else [])
    rows = [c for c in train if c.device == phone and c.strategy in wanted]

    def loss(factor: float) -> float:
        predictor = base.with_fit(replace(fit, unfriendly={**fit.unfriendly, phone: factor}))
        ratios = [predictor.latency_ms(c.device, c.model, c.strategy) / c.latency_ms for c in rows]
        return float(np.square(np.log(ratios)).sum())

    low, high = UNFRIENDLY_RANGE
    for _ in range(14):  # golden section would save half; the loss has one minimum
        third = (high - low) / 3
        if loss(low + third) < loss(high - third):
            high -= third
        else:
            low += third
    return (low + high) / 2


def errors(fit: Fit, rows: Iterable[Cell]) -> list[CellError]:
    """Each cell with its prediction under a fit."""
    predictor = Predictor(fit)
    return [CellError(c, predictor.latency_ms(c.device, c.model, c.strategy)) for c in rows]


def leave_one_model_out() -> list[CellError]:
    """Every cell predicted by a fit that saw no row of its network."""
    found = []
    for model in MODELS:
        fit = fit_all([c for c in cells() if c.model != model], [m for m in MODELS if m != model])
        found += errors(fit, [c for c in cells() if c.model == model])
    return found


def mean_abs(rows: Iterable[CellError]) -> float:
    """Mean absolute relative error, a fraction."""
    return float(np.mean([abs(r.error) for r in rows]))


def by_strategy(rows: Sequence[CellError]) -> Mapping[str, float]:
    """Mean absolute relative error of each strategy."""
    return {
        s: mean_abs([r for r in rows if r.cell.strategy == s])
        for s in STRATEGIES
        if any(r.cell.strategy == s for r in rows)
    }
