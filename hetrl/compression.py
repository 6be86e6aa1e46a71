"""How a plan compresses its model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from hetrl.errors import PlanError, UnknownName, UsageError

CHANNEL_MULTIPLE = 4  # what phones' kernels work on
MOST_CHANNEL_MULTIPLE = 1024
PRUNE, MULTIPLE, LOW_RANK, NOTHING = "prune", "multiple", "low-rank", "none"  # the words of `parse_compression`
WORDS = (PRUNE, MULTIPLE, LOW_RANK)
SHA256 = re.compile(r"[0-9a-f]{64}")


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
        if self.artefact_sha256 is not UNSET and not SHA256.fullmatch(self.artefact_sha256):
            raise PlanError("compression.artefact_sha256", "is no sha256 in lower-case hex")
        if self.artefact_sha256 is not UNSET and not self.changes:
            raise PlanError("compression.artefact_sha256", "is of a compressed model, and nothing is compressed")
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
        """As `parse_compression` reads it."""
        words = [f"prune={'/'.join(f'{ratio:g}' for ratio in self.ratios)}"] if self.prunes else []
        words += [] if self.channel_multiple is UNSET else [f"multiple={self.channel_multiple}"]
        words += [] if self.low_rank is UNSET else [f"low-rank={self.low_rank:g}"]
        return ",".join(words) or NOTHING


def _check_ratio(field: str, ratio: float) -> None:
    if not (math.isfinite(ratio) and 0 <= ratio < 1):
        raise PlanError(field, f"{ratio} is not in [0, 1)")


NO_COMPRESSION = Compression()


def parse_compression(text: str) -> Compression:
    """Read `prune=0.3`, `prune=0.1/0.3/0.5,multiple=16,low-rank=0.5`, or `none`.

    :raises UnknownName: a word that does not exist.
    :raises UsageError: a word without a number, given twice, or whose number makes no sense.
    """
    given: dict[str, list[float]] = {}
    for word in [] if text.strip() == NOTHING else text.split(","):
        name, _, value = word.strip().partition("=")
        if name not in WORDS:
            raise UnknownName("compression", name, [*WORDS, NOTHING], "such as prune=0.3,low-rank=0.5")
        if name in given:
            raise UsageError(f"{name} is given twice in {text!r}", "leave one away")
        given[name] = [_number(part, word, text) for part in value.split("/")]
        if len(given[name]) > 1 and name != PRUNE:
            raise UsageError(f"{name} in {text!r} takes one number", f"try {name}={value.partition('/')[0]}")
    multiple, low_rank = given.get(MULTIPLE, [float(CHANNEL_MULTIPLE)])[0], given.get(LOW_RANK, [None])[0]
    if MULTIPLE in given and PRUNE not in given:
        raise UsageError(f"{MULTIPLE} in {text!r} is for pruning", f"try {PRUNE}=0.3,{text}")
    if not 1 <= multiple <= MOST_CHANNEL_MULTIPLE or multiple != int(multiple):
        raise UsageError(f"channels cannot come in multiples of {multiple:g}", f"1 to {MOST_CHANNEL_MULTIPLE}")
    try:
        found = Compression.of(given.get(PRUNE, [0.0]), int(multiple))
        return found if low_rank is None else msgspec.structs.replace(found, low_rank=low_rank)
    except PlanError as error:
        raise UsageError(f"{text!r} makes no sense: {error}", "such as prune=0.3,low-rank=0.5") from None


def _number(part: str, word: str, text: str) -> float:
    try:
        value = float(part)
    except ValueError:
        raise UsageError(f"{word!r} in {text!r} holds no number", "such as prune=0.3,low-rank=0.5") from None
    if not math.isfinite(value):
        raise UsageError(f"{word!r} in {text!r} holds no number", "such as prune=0.3,low-rank=0.5")
    return value
