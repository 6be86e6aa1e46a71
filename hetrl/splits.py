"""How a split operator is cut: every rounding of shares to channels and rows, and every halo, is here.

Parts are listed in plan order; the accelerator's part comes first (CoDL, MobiSys'22, section 4: the GPU takes the
first channels or the upper rows, the CPU the rest). A branch has the same channels of every tensor that it makes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

CHANNEL_MULTIPLE = 4  # an OpenCL image pixel holds four channels, so a part's channels are a multiple of 4


def channel_bounds(channels: int, shares_pct: Sequence[int], multiple: int = CHANNEL_MULTIPLE) -> tuple[int, ...]:
    """Cut points in output channels: `len(shares_pct) + 1` numbers from 0 to `channels`, inner ones rounded up."""
    return _bounds(channels, shares_pct, multiple)


def row_bounds(rows: int, shares_pct: Sequence[int]) -> tuple[int, ...]:
    """Cut points in output rows: `len(shares_pct) + 1` numbers from 0 to `rows`, inner ones rounded up."""
    return _bounds(rows, shares_pct, 1)


def _bounds(total: int, shares_pct: Sequence[int], multiple: int) -> tuple[int, ...]:
    cuts, taken = [0], 0
    for share in shares_pct[:-1]:
        taken += share
        exact = -(-total * taken // 100)  # ceil, in integers
        cuts.append(min(total, -(-exact // multiple) * multiple))
    return (*cuts, total)


def every_part_works(bounds: Sequence[int]) -> bool:
    """Whether no part came out empty."""
    return all(low < high for low, high in itertools.pairwise(bounds))


def input_rows(
    first: int, last: int, *, height: int, kernel: int, stride: int, dilation: int, pad_top: int
) -> tuple[int, int]:
    """Input rows that output rows [first, last) read, as [first, last), clipped to the real input of `height` rows."""
    low = first * stride - pad_top
    high = (last - 1) * stride - pad_top + (kernel - 1) * dilation + 1
    return max(0, min(low, height)), max(0, min(high, height))
