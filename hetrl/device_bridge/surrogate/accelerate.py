"""When plans are evaluated by compiled code instead of numpy; the answers are the same to the last bit.

Importing numba and loading what it compiled takes about a second, and compiling it (once, then it is kept on disk) ten.
So a process begins with numpy, and changes over once numpy has taken about as long: one that evaluates few plans never
does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hetrl.condition import Ui

if TYPE_CHECKING:
    from hetrl.device_bridge.surrogate.cost_model import CostModel, Schedules

Floats = npt.NDArray[np.float64]
PATIENCE_S = 2.0  # of numpy's work, before numba is imported


@dataclass(frozen=True)
class Totals:
    """What plans cost in all, one entry per schedule (B,); `frame_drop_rate` is NaN without a UI.

    :param segment_ms: (n, B) how long each segment took, at its last position; 0 elsewhere.
    """

    latency_ms: Floats
    frame_drop_rate: Floats
    peak_memory_mb: Floats
    energy_mj: Floats
    segment_ms: Floats


@dataclass
class Pace:
    """How long numpy has evaluated plans in this process."""

    numpy_s: float = 0.0

    @property
    def compiles(self) -> bool:
        """Whether plans go through compiled code by now."""
        return self.numpy_s > PATIENCE_S and has_compiled()


PACE = Pace()


@cache
def has_compiled() -> bool:
    """Whether there is compiled code: not without numba, nor where it finds no folder to keep it in."""
    try:
        import hetrl.device_bridge.surrogate.compiled  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


def totals(model: CostModel, batch: Schedules, ui: Ui | None) -> Totals:
    """What `CostModel.evaluate` says but for single steps and processors."""
    if PACE.compiles:
        return totals_compiled(model, batch, ui)
    began = time.perf_counter()
    found = totals_by_numpy(model, batch, ui)
    PACE.numpy_s += time.perf_counter() - began
    return found


def totals_by_numpy(model: CostModel, batch: Schedules, ui: Ui | None) -> Totals:
    """The totals of `CostModel.evaluate`."""
    answers = model.evaluate(batch, ui)
    steps = answers.steps
    with np.errstate(invalid="ignore"):  # impossible plans end never, and begin their next segments then
        took = steps.end_ms - np.take_along_axis(steps.begin_ms, batch.start, axis=0)
    last = batch.end == np.arange(len(batch.end))[:, None]
    return Totals(
        answers.latency_ms,
        answers.frame_drop_rate,
        answers.peak_memory_mb,
        answers.energy_mj,
        np.where(last, took, 0.0),
    )


def totals_compiled(model: CostModel, batch: Schedules, ui: Ui | None) -> Totals:
    """The same from compiled code, which there must be.

    :raises IndexError: as numpy does, options, memory types or chains that the tables do not hold.
    """
    from hetrl.device_bridge.surrogate.compiled import Batch, Sums, evaluate_many

    n, size = batch.option.shape
    by_plan = Batch(
        option=_first_axis(batch.option, np.int64),
        start=_first_axis(batch.start, np.int64),
        end=_first_axis(batch.end, np.int64),
        memory=_first_axis(batch.memory, np.int64),
        duty=_first_axis(batch.duty, np.float64),
        queue_window=_first_axis(batch.queue_window, np.int64),
        slice_ms=_first_axis(batch.slice_ms, np.float64),
        overlap=_first_axis(batch.overlap, np.bool_),
    )
    latency, rate, peak, energy, contended = (np.empty(size) for _ in range(5))
    sums = Sums(latency, rate, peak, energy, np.empty((size, n)), contended)
    slack_ms = np.nan if ui is None or model.on_machine else ui.slack_ms
    if not evaluate_many(model.flat, by_plan, slack_ms, sums):
        raise IndexError("a schedule has an option, a memory type or a chain that the tables do not hold")
    if ui is not None and model.on_machine:
        rate = model.machine_drop_rate(batch, contended, latency, ui)
    return Totals(latency, rate, peak, energy, sums.segment_ms.T)


def _first_axis(values: npt.NDArray[Any], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """The batch on the first axis, in one layout: another would be compiled anew."""
    return np.require(values.T, dtype, ["C", "W"])
