"""hetrl finds which operator of a model runs on which processor of a phone.

import hetrl
result = hetrl.tune("vgg16", "d1", budget=500, seed=0, out="runs/mine")
print(result.latency_ms, result.plan.processors)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hetrl.api import calibrate, compare, load_model, measure, profile, search, sweep, tune
    from hetrl.device_bridge.registry import open_device
    from hetrl.errors import HetrlError
    from hetrl.model_api import score
    from hetrl.objective import Objective
    from hetrl.plan import Plan, load_plan
    from hetrl.results import Comparison, Pair, Result, Row, Sweep
    from hetrl.scoring.results import Scores

__version__ = "0.1.0"

_HOME = {
    "Comparison": "hetrl.results",
    "HetrlError": "hetrl.errors",
    "Objective": "hetrl.objective",
    "Pair": "hetrl.results",
    "Plan": "hetrl.plan",
    "Result": "hetrl.results",
    "Row": "hetrl.results",
    "Scores": "hetrl.scoring.results",
    "Sweep": "hetrl.results",
    "calibrate": "hetrl.api",
    "compare": "hetrl.api",
    "load_model": "hetrl.api",
    "load_plan": "hetrl.plan",
    "measure": "hetrl.api",
    "open_device": "hetrl.device_bridge.registry",
    "profile": "hetrl.api",
    "score": "hetrl.model_api",
    "search": "hetrl.api",
    "sweep": "hetrl.api",
    "tune": "hetrl.api",
}

__all__ = [
    "Comparison",
    "HetrlError",
    "Objective",
    "Pair",
    "Plan",
    "Result",
    "Row",
    "Scores",
    "Sweep",
    "calibrate",
    "compare",
    "load_model",
    "load_plan",
    "measure",
    "open_device",
    "profile",
    "score",
    "search",
    "sweep",
    "tune",
]


def __getattr__(name: str) -> object:
    """Import public names when they are first used, so that `import hetrl` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'hetrl' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
