"""90 % intervals of predictions, from held-out errors of their kind that the device file carries.

A plan's class says which errors it shares: `cpu`, `gpu` (or another unit) alone; `split`, several processors; and of
these `channels`, where every operator that is split is split over channels, and `other_memory`, tensors in the memory
type that the GPU does not like (also with the GPU alone). An interval is symmetric on the logarithm: what is unknown
multiplies.
"""

from __future__ import annotations

import math

from hetrl.device_bridge.spec import Engine, GpuCost, Known
from hetrl.plan import Axis, Plan, Segment

SPLIT, CHANNELS, OTHER_MEMORY = "split", "channels", "other_memory"


def plan_class(plan: Plan, engine: Engine) -> str:
    """The class of errors that a plan's prediction belongs to."""
    units = {p.id: p.unit for p in engine.processors}
    used = {units[name] for segment in plan.segments for name in segment.processors}
    split = [segment for segment in plan.segments if len(segment.parts) > 1]
    if split and all(s.axis is Axis.OUTPUT_CHANNELS for s in split) and 2 * len(split) > len(plan.segments):
        return CHANNELS
    if any(_unfriendly(segment, engine) for segment in plan.segments):
        return OTHER_MEMORY
    return used.pop() if len(used) == 1 else SPLIT


def _unfriendly(segment: Segment, engine: Engine) -> bool:
    likes = {p.id: p.cost.friendly_memory for p in engine.processors if isinstance(p.cost, GpuCost)}
    return any(segment.memory not in (None, likes[name]) for name in segment.processors if name in likes)


def known_as(structure_hash: str, pruned: bool, engine: Engine) -> Known:
    """How well the engine's fit knows a model; a pruned one is none of those that were measured."""
    if not pruned and structure_hash in engine.calibrated_models:
        return Known.CALIBRATED
    return Known.SEEN if not pruned and structure_hash in engine.seen_models else Known.UNSEEN


def interval_ms(
    latency_ms: float, engine: Engine, known: Known, plan_class: str, shifted: bool
) -> tuple[float, float] | None:
    """The interval around a prediction; None where the device file does not say."""
    spread = _spread(engine, known, plan_class)
    if spread is None:
        return None
    if shifted:
        spread = math.hypot(spread, _spread(engine, Known.SHIFTED, plan_class) or 0.0)
    return latency_ms * math.exp(-spread), latency_ms * math.exp(spread)


def _spread(engine: Engine, known: Known, plan_class: str) -> float | None:
    """The stored spread of a class; of the widest class where it has none of its own."""
    by_class = engine.errors.get(known, {})
    if plan_class in by_class:
        return by_class[plan_class].value
    return max((q.value for q in by_class.values()), default=None)
