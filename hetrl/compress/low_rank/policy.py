"""How far layers are factored, and into what."""

from __future__ import annotations

import math
from enum import StrEnum

import msgspec

from hetrl.errors import UsageError


class Scheme(StrEnum):
    """What a convolution with a window (k x k) becomes, of kernel O x I x k x k and rank r.

    NARROW, k x k to r channels and 1x1 to O: Zhang et al., "Accelerating Very Deep Convolutional Networks for
    Classification and Detection", TPAMI 2016. TUCKER, 1x1 to r_in channels, k x k to r_out, 1x1 to O: Kim et al.,
    "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR 2016. SPATIAL,
    k x 1 to r channels and 1 x k to O: Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank
    Expansions", BMVC 2014.
    """

    NARROW = "narrow"
    TUCKER = "tucker"
    SPATIAL = "spatial"


class LowRank(msgspec.Struct, frozen=True, kw_only=True):
    """How layers are factored, by exactly one of `keep`, `energy` and `rank`.

    :param keep: share (0 to 1, both excluded) of a layer's weights that its factors have at most.
    :param energy: share (above 0 to 1) of the sum of squared weights that they keep at least, which is that of a
        matrix's squared singular values.
    :param rank: at most; 1 or more.
    :param scheme: of convolutions with a window; 1x1 and dense layers know only NARROW, which for them is the SVD.
    :param matrices: factor 1x1 convolutions and dense layers as well.
    :param always: also where weights or work grow, and the first convolution and the classifier; to compare with.
    :raises UsageError: none or several of the three, or one out of range.
    """

    keep: float | None = None
    energy: float | None = None
    rank: int | None = None
    scheme: Scheme = Scheme.NARROW
    matrices: bool = True
    always: bool = False

    def __post_init__(self) -> None:
        if sum(amount is not None for amount in (self.keep, self.energy, self.rank)) != 1:
            raise UsageError(
                "low rank goes by the share of weights, or by energy, or by rank",
                "give one of --low-rank, --energy, --rank",
            )
        if self.keep is not None and not 0 < self.keep < 1:
            raise UsageError(f"keeping {self.keep:g} of a layer's weights makes no sense", "0 < keep < 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"keeping {self.energy:g} of a layer's energy makes no sense", "0 < energy <= 1")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"a rank of {self.rank} makes no sense", "1 or more")


def rank_by_share(keep: float, weights: int, weights_per_rank: int) -> int:
    """The largest rank that leaves at most the share `keep` of the weights; at least 1."""
    return max(1, math.floor(keep * weights / weights_per_rank))
