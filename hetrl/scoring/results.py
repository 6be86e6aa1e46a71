"""What scoring gives; field names are the keys of `--json`. Each carries the word for how it came about."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from hetrl.plan import Evidence


class Part(StrEnum):
    """Which of the data: all, or one of the two halves that tuning keeps apart."""

    ALL = "all"
    TUNING = "tuning"
    HELD_BACK = "held-back"


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """A model's metric on data.

    :param value: in `unit`: percent for top1 and top5, decibels for psnr.
    :param interval: 90 %, of what more such samples would give; None for too few samples.
    :param count: samples.
    """

    metric: str
    value: float
    unit: str
    larger_is_better: bool
    interval: tuple[float, float] | None
    count: int
    runtime: str
    evidence: Evidence = Evidence.MEASURED


class Drop(msgspec.Struct, frozen=True, kw_only=True):
    """How much worse than the original, on the same samples.

    :param points: percentage points for top1 and top5, else percent of the original's value; below 0 it is better.
    :param interval: 90 %, paired.
    """

    metric: str
    points: float
    interval: tuple[float, float] | None
    count: int
    evidence: Evidence = Evidence.MEASURED


class Fidelity(msgspec.Struct, frozen=True, kw_only=True):
    """How close outputs are to the original's on random inputs; it says little about accuracy.

    :param cosine: mean over inputs, 1 for the same direction.
    :param relative_error: largest difference over the original's largest value.
    :param top1_agreement_pct: inputs whose highest score is of the same class; None where outputs are no such scores.
    :param count: inputs, standard normal, drawn from `seed`.
    """

    cosine: float
    relative_error: float
    top1_agreement_pct: float | None
    count: int
    seed: int
    evidence: str = "fidelity"


class PredictedDrop(msgspec.Struct, frozen=True, kw_only=True):
    """Points of top-1 accuracy lost, by `hetrl.accuracy`, from the share of the weights that is left.

    :param kept_weights: 0 to 1.
    """

    points: float
    kept_weights: float
    int8: bool
    evidence: Evidence = Evidence.PREDICTED


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model: its score on data, and what it lost against another.

    :param part: which of the data.
    :param original: the score of `against`.
    :param fidelity: without data.
    :param predicted: without data, where `against` is a built-in network.
    """

    model: str
    against: str | None
    part: Part | None = None
    score: Score | None = None
    original: Score | None = None
    drop: Drop | None = None
    fidelity: Fidelity | None = None
    predicted: PredictedDrop | None = None
