"""What a run minimises: latency, within budgets for accuracy and for the user interface."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from hetrl.errors import UsageError

FloatArray = npt.NDArray[np.float64]


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """Latency within budgets.

    :param max_accuracy_drop_pct: percentage points of accuracy that compression may cost.
    :param max_frame_drop_rate: fraction of UI frames that may be dropped, None for no limit.
    :param max_output_error: how far the output may be off on a device that really runs plans (largest difference over
        largest value), None for the device's own limit.
    """

    max_accuracy_drop_pct: float = 0.0
    max_frame_drop_rate: float | None = None
    max_output_error: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_accuracy_drop_pct) and 0 <= self.max_accuracy_drop_pct <= 100):
            raise UsageError(
                f"an accuracy drop of {self.max_accuracy_drop_pct:g} points is no budget",
                "give --max-accuracy-drop 0 to 100 (percentage points)",
            )
        rate = self.max_frame_drop_rate
        if rate is not None and not (math.isfinite(rate) and 0 <= rate <= 1):
            raise UsageError(
                f"a frame drop of {100 * rate:g} % is no budget", "give --max-frame-drop 0 to 100 (percent of frames)"
            )

        error = self.max_output_error
        if error is not None and not (math.isfinite(error) and error > 0):
            raise UsageError(f"an output error of {error:g} is no limit", "give --max-output-error 1e-3, for example")

    def violation(self, accuracy_drop_pct: FloatArray, frame_drop_rate: FloatArray) -> FloatArray:
        """How far outside the budgets, 0 inside: points of accuracy and fractions of frames, each over its scale."""
        over = np.maximum(0.0, np.asarray(accuracy_drop_pct) - self.max_accuracy_drop_pct) / 10.0
        if self.max_frame_drop_rate is not None:
            over = over + np.maximum(0.0, np.nan_to_num(frame_drop_rate) - self.max_frame_drop_rate)
        return np.asarray(over, dtype=np.float64)

    def cost_ms(
        self, latency_ms: FloatArray, accuracy_drop_pct: FloatArray, frame_drop_rate: FloatArray, reference_ms: float
    ) -> FloatArray:
        """The number to minimise, array in, array out.

        Inside the budgets it is the latency. Outside it is the latency on top of `reference_ms` (that of some plan
        which keeps every budget), growing with the violation: so whatever breaks a budget ranks behind the reference.
        A failed measurement (latency NaN) costs as much as four references.
        """
        over = self.violation(accuracy_drop_pct, frame_drop_rate)
        cost = np.where(over > 0, reference_ms + np.asarray(latency_ms) * (1 + over), latency_ms)
        return np.nan_to_num(np.asarray(cost, dtype=np.float64), nan=4 * reference_ms, posinf=4 * reference_ms)

    def keeps(self, accuracy_drop_pct: float, frame_drop_rate: float | None) -> bool:
        """Whether one plan is inside the budgets."""
        drop = np.array([0.0 if frame_drop_rate is None else frame_drop_rate])
        return bool(self.violation(np.array([accuracy_drop_pct]), drop)[0] == 0)
