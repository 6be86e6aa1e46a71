"""Segments from a code per position: 0 goes on with the segment before, 1 + o begins one with option o."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.surrogate.accelerate import PACE

Ints = npt.NDArray[np.int64]


class Segments(NamedTuple):
    """(n, B) each: option of every position, first and last position of its segment.

    A plan's positions lie together in memory, as compiled code wants them.
    """

    option: Ints
    start: Ints
    end: Ints


def segments(codes: Ints) -> Segments:
    """Segments of (n, B) codes, of which the first of every plan begins one."""
    return (segments_compiled if PACE.compiles else segments_by_numpy)(codes)


def segments_by_numpy(codes: Ints) -> Segments:
    by_plan = np.ascontiguousarray(codes.T)
    n = len(codes)
    positions, begins = np.arange(n), by_plan != 0
    # The last start so far and its code, in one number: places that go on have 0, so the maximum carries them on.
    bits = int(codes.max(initial=0)).bit_length()
    latest = begins * (positions << bits) + by_plan  # multiplied: np.where is several times as slow
    np.maximum.accumulate(latest, axis=1, out=latest)
    end = np.full_like(latest, n - 1)
    end[:, :-1] -= begins[:, 1:] * positions[:0:-1]
    np.minimum.accumulate(end[:, ::-1], axis=1, out=end[:, ::-1])
    return Segments(((latest & ((1 << bits) - 1)) - 1).T, (latest >> bits).T, end.T)


def segments_compiled(codes: Ints) -> Segments:
    """The same from compiled code, which there must be."""
    from hetrl.device_bridge.surrogate.compiled import segment_many

    found = Segments(*(np.empty(codes.shape[::-1], dtype=np.int64) for _ in range(3)))
    segment_many(np.require(codes, np.int64, ["C", "W"]), *found)
    return Segments(*(values.T for values in found))
