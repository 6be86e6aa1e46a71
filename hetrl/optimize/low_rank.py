"""Low rank as the study has it: which kernels are factored, and what that costs in accuracy, predicted.

The kernels are those of windows larger than 1, the first one excepted; how they are factored is
`hetrl.compress.low_rank`'s business.

What it costs in accuracy depends on the weights and on training, and is predicted from one point. The study's Table 2
(arXiv 2405.01851) has it: ResNet-18 with low-rank decomposition falls from 76.23 to 73.73 %, its memory from 47.24 to
15.61 MB. The curve through it is a parabola of the share of weights that is gone, as with pruning (`hetrl.accuracy`):
that shape, and that it holds for other models and other ways to factor, is assumed. Every number of it is `predicted`.
"""

from __future__ import annotations

from hetrl.accuracy import LOW_RANK_DROP_PCT, LOW_RANK_NETWORK_KEPT
from hetrl.compress.low_rank import LowRank, factor
from hetrl.zoo.blueprint import Blueprint, Fill, Weight


def low_rank_drop_pct(kept_weights: float) -> float:
    """Percentage points of top-1 accuracy lost, predicted.

    :param kept_weights: share (above 0 to 1) of the whole network's weights that is left.
    """
    return round(LOW_RANK_DROP_PCT * ((1 - kept_weights) / (1 - LOW_RANK_NETWORK_KEPT)) ** 2, 4)


def low_rank(network: Blueprint, keep: float) -> Blueprint:
    """The network with every ungrouped convolution of a window larger than 1 factored, the first one excepted.

    :param keep: share (0 to 1, both excluded) of each factored kernel's weights that stays.
    :raises UsageError: a share out of range.
    """
    done = factor(network.model, LowRank(keep=keep, matrices=False))
    weights = {weight.name: weight for weight in network.weights}
    for layer in done.report.factored:
        gain = weights[layer.weight].gain  # the first link's; the others keep the mean square as it is
        weights |= {
            name: Weight(name, (), Fill.HE, 1.0 if number else gain) for number, name in enumerate(layer.factors)
        }
    tensors = done.model.graph.initializer
    drawn = (Weight(t.name, tuple(t.dims), weights[t.name].fill, weights[t.name].gain) for t in tensors)
    return Blueprint(done.model, tuple(drawn))
