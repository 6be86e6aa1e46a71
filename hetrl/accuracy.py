"""What changing a model costs in accuracy, predicted: pruning, low rank and branches by curves, int8 by one flat price.

Pruning. The one measured point is the study's Table 2 (arXiv 2405.01851): ResNet-18 with pruned channels falls from
76.23 to 71.31 %, its memory from 47.24 to 23.91 MB. Halving the weights takes 0.3 of the channels (0.7 squared is
0.49), so the point is (0.3, 4.92 points). The curve through it is a parabola: that shape, and that it holds for other
models, is assumed; and where stages of a network lose different shares, that each of them counts the same.

Low rank. Table 2 has it as well: from 76.23 to 73.73 %, the memory from 47.24 to 15.61 MB. If all is taken from the
kernels with windows but the first, which hold 10.99 of ResNet-18's 11.69 million weights, 0.288 of these are left. The
curve is a parabola again, of the share of each factored kernel that is gone, and again that is assumed.

int8. TensorFlow's guide to model optimization (tensorflow/lite/g3doc/performance/model_optimization.md) lists top-1
accuracy after post-training quantization: Inception v3 falls from 78.0 to 77.2 %, ResNet-v2-101 from 77.0 to 76.8 %,
MobileNets from 70.9 to 65.7 % and from 71.9 to 63.7 %. The price is that of the plain network that loses more. It is
paid once, by a plan that places anything at all on an int8 processor: that a part of a network in int8 loses less, that
depthwise networks lose much more, that training for int8 wins most of it back, and how pruning and int8 meet, is
ignored; the two are added.

Branches (`plan.Axis.BRANCHES`). Inside, the weights between channels of different branches are dropped: of those of a
convolution, the sum of the squared shares is left. Pruning takes as many weights at the ratio r with (1 - r) squared
left, so branches are priced as that pruning is. NN-Stretch (Wei et al., MobiSys 2023) reports up to 0.8 points *more*
after training its networks anew; a plan promises no training, so the price stands. It is that of the segment that drops
the largest share, for the whole network, and added to the others: that a segment's first operators keep all their
weights, and that the rest of the network keeps its own, is ignored, as it is with int8.

Every number that this gives is `predicted`, but what other `AccuracyDrops` have measured.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from hetrl.compression import Compression
from hetrl.plan import Axis, Evidence, Plan

if TYPE_CHECKING:
    from onnx import ModelProto

Floats = npt.NDArray[np.float64]
MEASURED_RATIO = 0.3
MEASURED_DROP_PCT = 76.23 - 71.31
SHARES = ("top1", "top5")  # metrics that are percentages of samples
LOW_RANK_NETWORK_KEPT = 15.61 / 47.24  # share of all weights
LOW_RANK_KEPT = (11.69 * LOW_RANK_NETWORK_KEPT - (11.69 - 10.99)) / 10.99  # of each factored kernel's
LOW_RANK_DROP_PCT = 76.23 - 73.73
INT8 = "int8"  # the precision, as processors name it
INT8_DROP_PCT = round(78.0 - 77.2, 4)


def predicted_accuracy_drop_pct(
    prune_ratio: float | Sequence[float], *, int8: bool = False, kept_weights: float = 1.0, low_rank: float = 1.0
) -> float:
    """Percentage points of top-1 accuracy lost.

    :param prune_ratio: share (0 to below 1) of the channels that go, or one share for each stage.
    :param int8: whether any operator is placed on an int8 processor.
    :param kept_weights: share (above 0 to 1) of the weights that branches leave.
    :param low_rank: share (above 0 to 1) of its weights that each factored kernel keeps.
    """
    ratios = [prune_ratio] if isinstance(prune_ratio, int | float) else prune_ratio
    missing = (1 - math.sqrt(kept_weights)) ** 2 + sum(ratio**2 for ratio in ratios) / len(ratios)
    pruned = float(_pruning_pct(np.float64(missing)))
    factored = LOW_RANK_DROP_PCT * ((1 - low_rank) / (1 - LOW_RANK_KEPT)) ** 2
    return round(pruned + factored + (INT8_DROP_PCT if int8 else 0.0), 4)


def _pruning_pct(mean_square: Floats | np.float64) -> Floats:
    """The parabola, over the mean of the squared ratios of all stages."""
    return np.asarray(MEASURED_DROP_PCT * mean_square / MEASURED_RATIO**2, dtype=np.float64)


class MeasuredAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan's model lost, measured on the half of the data that was held back until the end.

    :param drop_pct: points for top1 and top5, else percent of the original's value; with the 90 % interval that so many
        samples allow.
    """

    metric: str
    drop_pct: float
    interval_pct: tuple[float, float] | None
    samples: int
    evidence: Evidence = Evidence.MEASURED


def drop_words(metric: str, value: float, interval: tuple[float, float] | None) -> str:
    """How much worse a metric is, in words; drops of other metrics than shares are relative."""
    unit = "points" if metric in SHARES else "%"
    between = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
    return f"{metric} drops by {value:.2f}{between} {unit}"


class AccuracyDrops(ABC):
    """What compression costs one model."""

    @abstractmethod
    def compressed_pct(self, compression: Compression) -> float:
        """Percentage points of accuracy lost by compression alone; infinite where it is surely over the budget."""

    @abstractmethod
    def expected_pct(self, ratios: Floats, channel_multiple: int) -> Floats:
        """(N,) what pruning by (N, stages) ratios is expected to cost, from all that is known so far."""

    @property
    def key(self) -> str:
        """Changes with whatever the numbers depend on."""
        return ""

    def refuses(self, plan: Plan) -> bool:
        """Whether a last look, once a run has its best plans, takes this one back."""
        return False

    def held_back(self, compression: Compression) -> MeasuredAccuracy | None:
        """What that last look says; None where nothing is held back."""
        return None

    def model(self, compression: Compression) -> ModelProto | None:
        """The compressed model that the numbers are of; None where they are of no model in particular."""
        return None

    @abstractmethod
    def evidence(self, compression: Compression) -> Evidence:
        """How that number came about."""

    def drop_pct(self, compression: Compression, *, int8: bool = False, kept_weights: float = 1.0) -> float:
        """Percentage points lost; int8 and branches are predicted, and added.

        :param int8: whether any operator is placed on an int8 processor.
        :param kept_weights: share (above 0 to 1) of the weights that branches leave.
        """
        return round(
            self.compressed_pct(compression) + predicted_accuracy_drop_pct(0.0, int8=int8, kept_weights=kept_weights), 4
        )

    def beside_pruning_pct(self, plan: Plan) -> float:
        """What int8 and branches of a plan cost, predicted."""
        int8, kept = _beside_pruning(plan)
        return predicted_accuracy_drop_pct(0.0, int8=int8, kept_weights=kept)

    def of_plan(self, plan: Plan) -> float:
        """The same of a plan."""
        int8, kept = _beside_pruning(plan)
        return self.drop_pct(plan.compression, int8=int8, kept_weights=kept)

    def evidence_of_plan(self, plan: Plan) -> Evidence:
        """`measured` only if all of it is."""
        predicted = _beside_pruning(plan) != (False, 1.0)
        return Evidence.PREDICTED if predicted else self.evidence(plan.compression)


class PredictedDrops(AccuracyDrops):
    """By the curve above, for any model."""

    def compressed_pct(self, compression: Compression) -> float:
        return predicted_accuracy_drop_pct(compression.ratios, low_rank=compression.low_rank or 1.0)

    def expected_pct(self, ratios: Floats, channel_multiple: int) -> Floats:
        return _pruning_pct(np.square(ratios).mean(axis=1))

    def evidence(self, compression: Compression) -> Evidence:
        return Evidence.PREDICTED


PREDICTED_DROPS = PredictedDrops()


def _beside_pruning(plan: Plan) -> tuple[bool, float]:
    """Whether anything is on an int8 processor, and the share of the weights that branches leave."""
    int8 = any(name.endswith(f"/{INT8}") for name in plan.processors)
    branches = [segment for segment in plan.segments if segment.axis is Axis.BRANCHES]
    kept = min((kept_weights([part.share_pct for part in segment.parts]) for segment in branches), default=1.0)
    return int8, kept


def plan_accuracy_drop_pct(plan: Plan) -> float:
    """Percentage points that a plan costs, predicted."""
    return PREDICTED_DROPS.of_plan(plan)


def kept_weights(shares_pct: Sequence[int]) -> float:
    """Share of a convolution's weights that stay inside a branch, where branches have these shares of its channels."""
    return sum((share / 100) ** 2 for share in shares_pct)
