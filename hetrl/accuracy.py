"""What compression costs in accuracy, predicted.

The one measured point is the study's Table 2 (arXiv 2405.01851): ResNet-18 with pruned channels falls from 76.23 to
71.31 %, its memory from 47.24 to 23.91 MB. Halving the weights takes 0.3 of the channels (0.7 squared is 0.49), so
the point is (0.3, 4.92 points). The curve through it is a parabola: that shape, and that it holds for other models,
is assumed. Every number it gives is `predicted`.
"""

from __future__ import annotations

MEASURED_RATIO = 0.3
MEASURED_DROP_PCT = 76.23 - 71.31


def predicted_accuracy_drop_pct(prune_ratio: float) -> float:
    """Percentage points of top-1 accuracy lost when `prune_ratio` (0 to below 1) of the channels go."""
    return round(MEASURED_DROP_PCT * (prune_ratio / MEASURED_RATIO) ** 2, 4)
