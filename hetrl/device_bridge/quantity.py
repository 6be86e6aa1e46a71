"""A number that says where it comes from."""

from __future__ import annotations

from enum import StrEnum

import msgspec

LARGEST = 1e9  # of any number in a device file


class Source(StrEnum):
    """How a number came about.

    Measured is also what a maker states of the device, or what its driver or specification lists, and what somebody
    measured on the same silicon: the note says which.
    """

    MEASURED = "measured"
    FITTED = "fitted"
    SCALED = "scaled"
    ASSUMED = "assumed"


class Quantity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number with its source; `note` says which measurement, fit or rule."""

    value: float
    source: Source
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.value <= LARGEST:
            raise ValueError(f"{self.value} is not in 0 to {LARGEST:g}")
