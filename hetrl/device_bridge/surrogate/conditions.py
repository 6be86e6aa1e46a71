"""What a condition does to a device's tables: closed forms over the cold ones.

    heat         every processor slows down by heat ** (1 + (gamma - 1) * draw); draw is 0 for the GPU alone, 1 for CPU
                 and GPU together, in between by measured power for the CPU alone: more power, more throttling
    cache        time * (1 + slope * sensitivity * lost), lost = 1 - hit rate relative to the study's 0.2
    competitors  CPU: time * (1 + n) + n * slice per operator, since every operator is a barrier at which a thread may
                 wait for its turn; other processors: time * (1 + n * slope)
    suspended    a share of accelerated operators runs on the CPU without its full thread team, each paying for the
                 suspension

Heat, cache and suspension are fitted to the study's Table 3 (`calibration.conditions`), competition to its three
growth factors with 3 competitors (CPU 10.2, GPU 2.1, DSP 1.8: 1 + 3.07 n, 1 + 0.37 n, 1 + 0.27 n). All of it was
measured on one phone, and is used for the others unchanged.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import resources

import msgspec
import numpy as np
import numpy.typing as npt

from hetrl.condition import STUDY_CACHE_HIT, Condition
from hetrl.device_bridge.quantity import Quantity
from hetrl.device_bridge.surrogate.tables import Tables

Floats = npt.NDArray[np.float64]
COLD = Condition(ui=None)
CPU_ALONE_DRAW = 0.5  # (6.1 - 3.7) W of the (8.5 - 3.7) W between GPU alone and both (CoDL, figure 21)


class ConditionEffects(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The numbers of the closed forms, dimensionless but for `_ms`."""

    heat_30: Quantity
    heat_60: Quantity
    heat_70: Quantity
    gamma: Quantity
    cache_slope: Quantity
    cache_shared: Quantity
    fallback_slowdown: Quantity
    suspension_ms: Quantity
    competitor_slice_ms: Quantity
    competitor_gpu: Quantity
    competitor_dsp: Quantity

    def heat(self, state: str) -> float:
        """Slow-down of the GPU alone; `cold` has none."""
        hot = {"cold": 1.0, "sigma1": self.heat_60.value, "sigma2": self.heat_70.value}
        return hot.get(state, self.heat_30.value)


@cache
def study_effects() -> ConditionEffects:
    """The effects that hetrl ships."""
    data = (resources.files("hetrl.data") / "condition_effects.json").read_bytes()
    return msgspec.json.decode(data, type=ConditionEffects)


def load_of(condition: Condition) -> Condition:
    """What of a condition changes times: all but the user interface. Equal loads compare equal; `COLD` has none."""
    hit, suspended = condition.effective_cache_hit, condition.effective_suspended
    state = condition.state if condition.state in ("cold", "sigma1", "sigma2") else "sigma0"
    return Condition(state, condition.competitors, None if hit == 1 else hit, suspended or None, None)


def under(tables: Tables, condition: Condition, effects: ConditionEffects) -> Tables:
    """The tables as they are under a condition."""
    if load_of(condition) == COLD:
        return tables
    processors = tables.engine.processors
    cpu = next(i for i, p in enumerate(processors) if p.unit == "cpu")
    split = np.array([o.split for o in tables.options])
    time = tables.time_ms.copy()  # (M, n, O, L, P)
    for p, processor in enumerate(processors):
        draw = np.where(split, 1.0, CPU_ALONE_DRAW if p == cpu else 0.0)
        heat = effects.heat(condition.state) ** (1 + (effects.gamma.value - 1) * draw)
        disturbed = _cache_factor(condition, effects, split | (p == cpu))
        time[..., p] *= (heat * disturbed)[None, None, :, None]
        time[..., p] = _beside_competitors(time[..., p], processor.unit, condition.competitors, effects)
    host = effects.heat(condition.state) ** (1 + (effects.gamma.value - 1) * CPU_ALONE_DRAW)
    moved = replace(tables, time_ms=time, transfer_factor=host * (1 + condition.competitors))
    return _suspended(moved, cpu, condition.effective_suspended, effects)


def _cache_factor(condition: Condition, effects: ConditionEffects, with_cpu: npt.NDArray[np.bool_]) -> Floats:
    lost = (1 - condition.effective_cache_hit) / (1 - STUDY_CACHE_HIT)
    sensitivity = np.where(with_cpu, effects.cache_shared.value, 1.0)
    return 1 + effects.cache_slope.value * sensitivity * lost


def _beside_competitors(time: Floats, unit: str, count: int, effects: ConditionEffects) -> Floats:
    if not count:
        return time
    if unit == "cpu":
        return np.where(time > 0, time * (1 + count) + count * effects.competitor_slice_ms.value, 0.0)
    slope = effects.competitor_gpu if unit == "gpu" else effects.competitor_dsp
    return time * (1 + count * slope.value)


def _suspended(tables: Tables, cpu: int, share: float, effects: ConditionEffects) -> Tables:
    """`share` of every accelerated operator's time goes, and the CPU's time for it comes, as a stall."""
    if not share:
        return tables
    accelerated = np.array([any(p != cpu for p in o.processors) for o in tables.options])
    alone = tables.time_ms[:, :, cpu, 0, cpu]  # (M, n): option numbers of single processors are the processors' own
    # The fit multiplies cold CPU times (`calibration.conditions`), whereas these are at least as warm as at sigma0.
    warm = effects.heat_30.value ** (1 + (effects.gamma.value - 1) * CPU_ALONE_DRAW)
    stall = share * effects.fallback_slowdown.value / warm * alone + effects.suspension_ms.value
    stall = np.where(alone > 0, stall, 0.0)[:, :, None, None] * accelerated[None, None, :, None]
    left = np.where(accelerated, 1 - share, 1.0)[None, None, :, None, None]
    time = np.multiply(tables.time_ms, left, out=tables.time_ms.copy(), where=np.isfinite(tables.time_ms))
    return replace(tables, time_ms=time, stall_ms=stall)
