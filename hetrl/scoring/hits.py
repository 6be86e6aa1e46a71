"""top1 and top5: the share of samples whose class is among the highest scores, in percent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hetrl.errors import UsageError
from hetrl.scoring.data import EvalData
from hetrl.scoring.interface import Array
from hetrl.scoring.metrics import Metric, Parts, Summary
from hetrl.scoring.statistics import Interval, paired_shares, wilson


class Hits(Metric):
    """Whether the right class is among the `k` highest scores; of equal scores the lower class counts as higher."""

    unit = "%"

    def __init__(self, k: int) -> None:
        self.k = k
        self.name = f"top{k}"

    def check(self, data: EvalData, output: str, found: Array) -> None:
        labels, scores = data.labels, class_scores(found)
        if labels.ndim != 1 or labels.dtype.kind != "i":
            many = labels.ndim == 2 and labels.shape[1] > 1
            what = "x".join(map(str, labels.shape))
            hint = "labels.argmax(1) if they are one-hot" if many else "integers from 0 on"
            raise UsageError(
                f"{self.name} wants a class number per sample, and labels are {labels.dtype} of {what}", hint
            )
        if scores is None:
            shape = "x".join(["N", *map(str, found.shape[1:])])
            raise UsageError(
                f"{self.name} wants scores of classes, and the output {output!r} is {shape}", "--metric mse"
            )
        classes, lowest, highest = scores.shape[1], int(labels.min()), int(labels.max())
        if lowest < 0 or highest >= classes:
            bad = lowest if lowest < 0 else highest
            raise UsageError(
                f"a label is {bad}, and the output {output!r} has {classes} classes", f"classes are 0 to {classes - 1}"
            )
        if data.samples.classes not in (None, classes):
            raise UsageError(
                f"the data have folders for {data.samples.classes} classes, the output {output!r} has {classes}",
                "list the model's classes in classes.txt, one folder's name per line",
            )

    def summary(self, parts: Parts, data: EvalData) -> Summary:
        hits, right = np.zeros(len(data)), data.labels.astype(np.int64)
        for place, found in parts:
            scores = class_scores(found)
            if scores is not None:
                hits[place] = ranks(scores, right[place]) < self.k
        return Summary(100 * float(hits.mean()), tuple(hits.tolist()))

    def interval(self, summary: Summary) -> Interval | None:
        low, high = wilson(round(sum(summary.parts)), len(summary.parts))
        return 100 * low, 100 * high

    def drop(self, original: Summary, other: Summary) -> tuple[float, Interval | None]:
        pairs = list(zip(original.parts, other.parts, strict=True))
        lost, won = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
        low, high = paired_shares(lost, won, len(pairs))
        return 100 * (lost - won) / len(pairs), (100 * low, 100 * high)


def class_scores(found: Array) -> Array | None:
    """Outputs as samples x classes; None where they are no scores of at least two classes."""
    sizes = [size for size in found.shape[1:] if size != 1]
    if len(sizes) != 1 or found.dtype.kind not in "fiu":
        return None
    return found.reshape(len(found), sizes[0])


def ranks(scores: Array, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes come before the right one: shape samples."""
    numbers = np.asarray(scores, np.float64)
    own = np.take_along_axis(numbers, labels[:, None], 1)
    before = np.arange(numbers.shape[1]) < labels[:, None]
    ahead: NDArray[np.int64] = ((numbers > own) | ((numbers == own) & before)).sum(1)
    return ahead
