"""How a plan compresses its model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from hetrl.errors import PlanError

CHANNEL_MULTIPLE = 4  # what phones' kernels work on
MOST_CHANNEL_MULTIPLE = 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Compression(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the model is made smaller. What is not written into the file has its default.

    :param prune_ratio: share (0 to below 1) of the prunable channels of every stage that is taken away.
    :param stage_ratios: one share for each stage instead, from the highest resolution to the lowest; not all equal.
    :param low_rank: share (0 to 1, both excluded) of its weights that each factored kernel keeps at most.
    :param channel_multiple: numbers of channels are rounded up to multiples of it (1 to 1024, default 4).
    :param artefact_sha256: of the compressed model's file, where there is one.
    """

    prune_ratio: float = 0.0
    stage_ratios: tuple[float, ...] | UnsetType = UNSET
    low_rank: float | UnsetType = UNSET
    channel_multiple: int | UnsetType = UNSET
    artefact_sha256: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        ratio = float(self.prune_ratio) + 0.0  # values that compare equal are written the same
        msgspec.structs.force_setattr(self, "prune_ratio", ratio)
        _check_ratio("compression.prune_ratio", self.prune_ratio)
        if self.channel_multiple is not UNSET and not 1 <= self.channel_multiple <= MOST_CHANNEL_MULTIPLE:
            raise PlanError(
                "compression.channel_multiple", f"{self.channel_multiple} is not in 1 to {MOST_CHANNEL_MULTIPLE}"
            )
        if self.low_rank is not UNSET and not 0 < self.low_rank < 1:
            raise PlanError("compression.low_rank", f"{self.low_rank} is not between 0 and 1")
        if self.artefact_sha256 is not UNSET and not _SHA256.fullmatch(self.artefact_sha256):
            raise PlanError("compression.artefact_sha256", "is no sha256 in lower-case hex")
        if self.stage_ratios is not UNSET:
            self._check_stages(self.stage_ratios)
        if self.multiple == CHANNEL_MULTIPLE or not self.prunes:  # says nothing
            msgspec.structs.force_setattr(self, "channel_multiple", UNSET)

    def _check_stages(self, ratios: tuple[float, ...]) -> None:
        for index, ratio in enumerate(ratios):
            _check_ratio(f"compression.stage_ratios[{index}]", ratio)
        if self.prune_ratio or len(set(ratios)) < 2:
            raise PlanError("compression.stage_ratios", "must differ, and prune_ratio be 0", "write prune_ratio alone")
        msgspec.structs.force_setattr(self, "stage_ratios", tuple(float(r) + 0.0 for r in ratios))

    @classmethod
    def of(cls, ratios: Sequence[float], channel_multiple: int = CHANNEL_MULTIPLE) -> Compression:
        """Pruning by one ratio per stage (or one for all)."""
        if len(set(ratios)) == 1:
            return cls(ratios[0], channel_multiple=channel_multiple)
        return cls(stage_ratios=tuple(ratios), channel_multiple=channel_multiple)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Pruning ratio of each stage, or the one of all of them."""
        return (self.prune_ratio,) if self.stage_ratios is UNSET else self.stage_ratios

    @property
    def multiple(self) -> int:
        """What numbers of channels are rounded up to multiples of."""
        return CHANNEL_MULTIPLE if self.channel_multiple is UNSET else self.channel_multiple

    @property
    def prunes(self) -> bool:
        """Whether any channel is to go."""
        return any(self.ratios)

    @property
    def changes(self) -> bool:
        """Whether the model is another one than the original."""
        return self.prunes or self.low_rank is not UNSET

    @property
    def shapes(self) -> Compression:
        """The same, whatever the weights are: equal where the smaller models have equal shapes."""
        return msgspec.structs.replace(self, artefact_sha256=UNSET)

    def __str__(self) -> str:
        """`0`, `0.3`, `0.1/0.3/0.5`; what is not usual follows: `0.3 in multiples of 16, low rank 0.5`."""
        words = "/".join(f"{ratio:g}" for ratio in self.ratios)
        if self.channel_multiple is not UNSET:
            words += f" in multiples of {self.channel_multiple}"
        return words if self.low_rank is UNSET else f"{words}, low rank {self.low_rank:g}"


def _check_ratio(field: str, ratio: float) -> None:
    if not (math.isfinite(ratio) and 0 <= ratio < 1):
        raise PlanError(field, f"{ratio} is not in [0, 1)")


NO_COMPRESSION = Compression()
