"""What a fit gives for measured cells, and its errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hetrl.calibration.fit import FAMILY, strategy_class
from hetrl.calibration.linear import Rates, ideal_of, latency_of
from hetrl.calibration.plans import STRATEGIES, walk
from hetrl.calibration.rows import Cell
from hetrl.device_bridge.spec import CpuCost, Engine, GpuCost

CLASSES = ("mace_cpu", "mace_gpu", "ideal", "codl", "mulayer", "codl_other")
ORDER_GAP = 1.15  # pairs of strategies that are nearer to each other have no order


@dataclass(frozen=True)
class CellError:
    """A cell with its prediction; `error` is predicted / measured - 1."""

    cell: Cell
    predicted_ms: float

    @property
    def error(self) -> float:
        return self.predicted_ms / self.cell.latency_ms - 1

    @property
    def log_error(self) -> float:
        """ln(measured / predicted)."""
        return float(np.log(self.cell.latency_ms / self.predicted_ms))


def predictions(cells: Sequence[Cell], engines: Mapping[str, Engine]) -> list[CellError]:
    """Each cell with its prediction: planned and evaluated as hetrl itself does."""
    planned = walk(cells, engines)
    rates = {phone: rates_of(engine) for phone, engine in engines.items()}
    found = []
    for cell in cells:
        rate = rates[cell.device]
        if cell.strategy == "ideal":
            slope = ideal_of(cell.model, rate)
        else:
            slope = latency_of(planned[cell.device, cell.model, cell.strategy], rate)
        found.append(CellError(cell, slope.latency_ms))
    return found


def rates_of(engine: Engine) -> Rates:
    """A `mace` engine set's numbers as coefficients."""
    cpu, gpu = (p.cost for p in engine.processors)
    assert isinstance(cpu, CpuCost) and isinstance(gpu, GpuCost)
    gemm, plain, traffic = cpu.ms_per_gmac.value, gpu.ms_per_gmac.value, gpu.ms_per_mb.value
    direct, stride2 = gemm * cpu.direct_factor.value, gemm * cpu.stride2_factor.value
    one, large = plain * gpu.factor_1x1.value, plain * gpu.large_kernel_factor.value
    return Rates(
        cpu=np.array([gemm, direct, stride2, cpu.ms_per_mb.value, cpu.launch_ms.value]),
        gpu=np.array([plain, one, large, traffic, traffic * gpu.dense_factor.value, gpu.launch_ms.value]),
        unfriendly=gpu.unfriendly_factor.value,
        share_1x1=gpu.unfriendly_share_1x1.value,
        contention=engine.links[0].contention.value,
    )


def mean_abs(rows: Iterable[CellError]) -> float:
    """Mean absolute relative error, a fraction."""
    return float(np.mean([abs(r.error) for r in rows]))


def of_strategies(rows: Sequence[CellError]) -> dict[str, list[CellError]]:
    """The rows of each strategy."""
    return _grouped(rows, [r.cell.strategy for r in rows], STRATEGIES)


def of_classes(rows: Sequence[CellError]) -> dict[str, list[CellError]]:
    """The rows of each class of strategies (`fit.strategy_class`), and of CoDL on the Snapdragons."""
    found = _grouped(rows, [strategy_class(r.cell) for r in rows], CLASSES)
    snapdragon = [r for r in found.get("codl", ()) if FAMILY[r.cell.device] == "adreno"]
    return {**found, "codl_snapdragon": snapdragon} if snapdragon else found


def _grouped(rows: Sequence[CellError], names: Sequence[str], order: Iterable[str]) -> dict[str, list[CellError]]:
    found = {name: [r for r, n in zip(rows, names, strict=True) if n == name] for name in order}
    return {name: chosen for name, chosen in found.items() if chosen}


def order_share(rows: Sequence[CellError]) -> float:
    """Share of pairs of strategies, more than 15 % apart on one (phone, network), that are in the measured order."""
    real = [r for r in rows if r.cell.strategy != "ideal"]
    right = [
        a.predicted_ms < b.predicted_ms
        for a in real
        for b in real
        if (a.cell.device, a.cell.model) == (b.cell.device, b.cell.model)
        and a.cell.latency_ms * ORDER_GAP < b.cell.latency_ms
    ]
    return float(np.mean(right))
