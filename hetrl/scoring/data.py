"""Samples with what is right for them, and their division into two halves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hetrl.errors import UsageError
from hetrl.scoring.interface import Array

Rows = NDArray[np.int64]
Feeds = Mapping[str, Array]


class Samples(Protocol):
    """A source of samples, which may be larger than the memory."""

    @property
    def labels(self) -> Array:
        """What is right: a class number for each sample (int64, shape N), or targets (floats, shape Nx...)."""

    @property
    def classes(self) -> int | None:
        """How many classes the labels are of, None where only the model can know."""

    @property
    def key(self) -> str:
        """Hash of everything that `batch` and `labels` can give."""

    def batch(self, rows: Rows) -> dict[str, Array]:
        """The inputs by name, each of shape len(rows)x..., in the model's types.

        :raises UsageError: a sample cannot be read.
        """


@dataclass(frozen=True)
class EvalData:
    """Some of the samples of a source.

    :param rows: which, ascending.
    """

    samples: Samples
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def labels(self) -> Array:
        """Those of these samples."""
        return self.samples.labels[self.rows]

    @cached_property
    def key(self) -> str:
        """Changes with anything that a score may depend on."""
        digest = hashlib.sha256(self.samples.key.encode())
        digest.update(self.rows.astype("<i8").tobytes())
        return digest.hexdigest()

    def batches(self, size: int) -> Iterator[tuple[slice, dict[str, Array]]]:
        """Inputs of `size` samples at a time, the last ones may be fewer; each with its place among these samples."""
        for start in range(0, len(self), size):
            place = slice(start, min(start + size, len(self)))
            yield place, self.samples.batch(self.rows[place])

    def halves(self, seed: int = 0) -> tuple[EvalData, EvalData]:
        """One half to tune on, and one to be held back until the end; the same for the same seed.

        Class numbers are spread evenly: each class, and all together, differ by at most one sample.

        :raises UsageError: fewer than two samples.
        """
        if len(self) < 2:
            raise UsageError("one sample cannot be divided into a half to tune on and a half to hold back")
        order = np.random.default_rng(seed).permutation(len(self))
        if self.labels.ndim == 1 and self.labels.dtype.kind in "iu":
            order = order[np.argsort(self.labels[order], kind="stable")]
        return tuple(EvalData(self.samples, np.sort(self.rows[order[part::2]])) for part in (0, 1))  # type: ignore[return-value]


def whole(samples: Samples) -> EvalData:
    """All of them."""
    return EvalData(samples, np.arange(len(samples.labels)))
