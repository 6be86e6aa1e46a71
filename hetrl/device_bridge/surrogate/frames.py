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
from typing import Any

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
    pieces = kernels.duration_ms / kernels.slices
    busy = np.cumsum(kernels.duration_ms, axis=0)[-1]
    dropped = np.zeros(len(window))
    longest_wait = np.minimum(window * pieces.max(axis=0), busy)
    some = np.flatnonzero((longest_wait > slack_ms) & np.isfinite(busy))
    if some.size:
        taken = Kernels(kernels.duration_ms[:, some], kernels.slices[:, some], kernels.drained[:, some])
        dropped[some] = _dropped_ms(taken, pieces[:, some], window[some], slack_ms)
    return dropped


def _dropped_ms(kernels: Kernels, pieces: Floats, window: Ints, slack_ms: float) -> Floats:
    n, size = pieces.shape
    starts = np.zeros((size, n + 1))
    starts[:, 1:] = np.cumsum(kernels.duration_ms, axis=0).T
    slices = np.zeros((size, n + 1), dtype=np.int64)  # none at the end
    slices[:, :n] = np.where(pieces > 0, kernels.slices, 0).T
    first = np.cumsum(slices).reshape(size, n + 1) - slices  # number of each position's first slice
    drain = np.empty((size, n), dtype=np.int64)  # first position that is not queued behind, as an index into both
    drain[:, -1] = n
    for k in range(n - 2, -1, -1):
        drain[:, k] = np.where(kernels.drained[k + 1], k + 1, drain[:, k + 1])
    drain += (n + 1) * np.arange(size)[:, None]

    def each(values: npt.NDArray[np.generic]) -> npt.NDArray[Any]:
        """One entry per slice, schedule after schedule, from one per schedule and position."""
        return np.repeat(values.ravel(), slices[:, :n].ravel())

    piece = each(pieces.T)
    number = np.arange(len(piece))
    start = each(starts[:, :n]) + (number - each(first[:, :n])) * piece
    # Behind a slice wait those up to the window's end, or up to where the host drains the queue.
    drained = each(first.ravel()[drain])
    behind = number + each(np.broadcast_to(window[:, None], (size, n)))
    filled = start[np.minimum(behind, len(piece) - 1)]
    queued_until = np.where(behind < drained, filled, each(starts.ravel()[drain]))
    column = each(np.broadcast_to(np.arange(size)[:, None], (size, n)))
    late = np.clip(queued_until - start - slack_ms, 0.0, piece)
    return np.bincount(column, late, minlength=size).astype(np.float64)
