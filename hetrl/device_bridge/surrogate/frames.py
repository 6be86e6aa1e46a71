"""Frames that a user interface drops beside inference: a closed form.

The GPU does not pre-empt a kernel. A frame that arrives u ms into a kernel of d ms waits for the rest of it and for
the kernels already queued behind it (the queue window, as far as the host keeps the queue filled); it is dropped if
that wait is longer than the slack, the frame's budget less its own drawing time. Frames arrive uniformly in time:

    dropped time of a kernel = clamp(d + queued - slack, 0, d)

and the drop rate is the dropped time over the whole time, idle time of caps included. Users of MACE describe the
mechanism (its issues 222 and 532: the screen stalls as long as the OpenCL queue runs); no measured curve exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Kernels:
    """GPU work per position and schedule: (n, B) duration, number of equal slices, and whether the host drains the
    queue before the position."""

    duration_ms: Floats
    slices: Floats
    drained: npt.NDArray[np.bool_]

    @staticmethod
    def empty(positions: int, size: int) -> Kernels:
        return Kernels(
            np.zeros((positions, size)), np.ones((positions, size)), np.zeros((positions, size), dtype=np.bool_)
        )

    def add(self, position: int, duration_ms: Floats, slices: Floats) -> None:
        self.duration_ms[position] += duration_ms
        np.maximum(self.slices[position], slices, out=self.slices[position])

    def stops_queue(self, position: int, where: npt.NDArray[np.bool_]) -> None:
        self.drained[position] |= where


def dropped_ms(kernels: Kernels, window: Ints, slack_ms: float) -> Floats:
    """(B,) time of one inference in which an arriving frame would be dropped.

    :param window: (B,) kernels (slices, where kernels are sliced) that may be queued, the running one included.
    """
    n, size = kernels.duration_ms.shape
    total = np.vstack([np.zeros(size), np.cumsum(kernels.duration_ms, axis=0)])
    run_end = np.empty((n, size), dtype=np.int64)  # first position that is not queued behind
    run_end[-1] = n
    for k in range(n - 2, -1, -1):
        run_end[k] = np.where(kernels.drained[k + 1], k + 1, run_end[k + 1])
    dropped = np.zeros(size)
    columns = np.arange(size)
    for k in range(n):
        duration, slices = kernels.duration_ms[k], kernels.slices[k]
        behind = total[run_end[k], columns] - total[k + 1]
        piece = duration / slices
        queued_kernels = total[np.minimum(k + window, run_end[k]), columns] - total[k + 1]
        queued_slices = np.minimum((window - 1) * piece, behind + duration - piece)
        queued = np.where(slices > 1, queued_slices, queued_kernels)
        dropped += slices * np.clip(piece + queued - slack_ms, 0.0, piece)
    return dropped
