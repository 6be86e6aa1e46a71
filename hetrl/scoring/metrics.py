"""What a score is: a metric's value with its interval, and the drop from one model to another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import msgspec
import numpy as np

from hetrl.errors import ModelError, UsageError
from hetrl.scoring.data import EvalData
from hetrl.scoring.interface import Array
from hetrl.scoring.statistics import Floats, Interval

Parts = Iterable[tuple[slice, Array]]
NAMES = ("top1", "top5", "mse", "psnr", "cosine")


class Summary(msgspec.Struct, frozen=True):
    """What a metric keeps of a model's outputs for some data.

    :param value: the metric, in its unit.
    :param parts: what its intervals are made from: a number for each sample, or the metric with each of several parts
        of the data left out.
    """

    value: float
    parts: tuple[float, ...]


class Metric(ABC):
    """How outputs and labels become a number.

    A *drop* is how much worse a model is than another, in points; below 0 it is better. Points are percentage points
    for shares of hits, and for all others percent of the original's value.
    """

    name: str
    unit: str = ""
    larger_is_better: bool = True
    cacheable: bool = True

    @abstractmethod
    def check(self, data: EvalData, output: str, found: Array) -> None:
        """Whether the labels fit an output of this shape.

        :param found: outputs of the first samples.
        :raises UsageError: they do not.
        """

    @abstractmethod
    def summary(self, parts: Parts, data: EvalData) -> Summary:
        """The metric of outputs that come some samples at a time."""

    @abstractmethod
    def interval(self, summary: Summary) -> Interval | None:
        """90 % interval of the value, None where there are too few samples."""

    @abstractmethod
    def drop(self, original: Summary, other: Summary) -> tuple[float, Interval | None]:
        """Points lost, and their 90 % interval; both are of the same samples."""

    def relative_drop(self, original: float, other: float) -> float:
        """Percent of the original's value by which the other is worse.

        :raises UsageError: the original's value is zero.
        """
        if original == 0:
            raise UsageError(
                f"the original's {self.name} is 0, of which nothing is a percentage", "take another metric"
            )
        return float(self.relative(np.array([original]), np.array([other]))[0])

    def relative(self, original: Floats, other: Floats) -> Floats:
        """The same for arrays, unchecked."""
        worse = original - other if self.larger_is_better else other - original
        points: Floats = 100 * worse / np.abs(original)
        return points


def find_metric(name: str) -> Metric:
    """A metric by its name, or `module:function`, which is imported (also from the current folder).

    :raises UsageError: there is none.
    """
    from hetrl.scoring.custom import load_metric
    from hetrl.scoring.hits import Hits
    from hetrl.scoring.sample_means import cosine, mse, psnr

    known = {"top1": Hits(1), "top5": Hits(5), "mse": mse, "psnr": psnr, "cosine": cosine}
    if name in known:
        return known[name]
    if ":" in name:
        return load_metric(name)
    raise UsageError(f"unknown metric {name!r}", f"{', '.join(NAMES)}, or module:function of your own")


def finite(value: float, name: str) -> float:
    """The value.

    :raises ModelError: it is no number.
    """
    if not np.isfinite(value):
        raise ModelError(f"the {name} of the model's outputs is {value}, no finite number")
    return value
