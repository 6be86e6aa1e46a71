"""How much processor time the exact search takes for each built-in model, and what it proves.

python experiments/bench_exact.py                                      d1, cold, no budgets
python experiments/bench_exact.py --condition sigma2 --devices d1 d3   others
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

from hetrl.agents.exact import Exact, additive, side_by_side
from hetrl.condition import Condition, parse_condition
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.envs.space import PlanSpace
from hetrl.objective import Objective
from hetrl.report.tables import gap, number
from hetrl.zoo.catalog import catalog
from hetrl.zoo.resolve import resolve_model


@dataclass(frozen=True)
class Timed:
    """`additive_ms` is the dynamic program's time; `branches_ms` that of branches side by side, None without any."""

    device: str
    model: str
    groups: int
    additive_ms: float
    branches_ms: float | None
    best: Exact

    def __str__(self) -> str:
        branches = "-" if self.branches_ms is None else f"{self.branches_ms:.0f}"
        how = gap((self.best.latency_ms - self.best.bound_ms) / self.best.bound_ms)
        cells = (
            self.device,
            self.model,
            self.groups,
            f"{self.additive_ms:.0f}",
            branches,
            number(self.best.latency_ms),
        )
        return "| " + " | ".join(map(str, (*cells, how))) + " |"


def timed(device: str, model: str, condition: Condition) -> Timed:
    """One search; the tables of the cost model are made before."""
    space = PlanSpace(SurrogateDevice(load_spec(device), resolve_model(model)), Objective())
    for compression in space.compressions:
        space.device.cost_model(compression, condition=condition)
    began = time.process_time()
    best = additive(space, Objective(), condition)
    additive_ms = 1000 * (time.process_time() - began)
    if not space.branches:
        return Timed(device, model, space.groups, additive_ms, None, best)
    began = time.process_time()
    best = side_by_side(space, Objective(), condition, best)
    return Timed(device, model, space.groups, additive_ms, 1000 * (time.process_time() - began), best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--condition", default="cold")
    parser.add_argument("--devices", nargs="+", default=["d1"])
    parser.add_argument("--models", nargs="+", default=[entry.name for entry in catalog()])
    asked = parser.parse_args()
    print("| device | model | groups | additive, ms | side by side, ms | latency, ms | above bound |")
    print("|---" * 7 + "|")
    for device in asked.devices:
        for model in asked.models:
            print(timed(device, model, parse_condition(asked.condition)), flush=True)


if __name__ == "__main__":
    main()
