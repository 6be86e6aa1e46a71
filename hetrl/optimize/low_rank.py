"""Low-rank convolutions: the shapes of a network whose k x k kernels are factored.

A kernel of OC x IC x k x k, read as a matrix of OC rows, is replaced by one of rank r: a k x k convolution to r
channels and a 1x1 convolution to OC (Zhang et al., "Accelerating Very Deep Convolutional Networks", TPAMI 2016).
Weights and work follow from shapes: r (IC k^2 + OC) weights instead of IC OC k^2.

What it costs in accuracy depends on the weights and on training, and is predicted from one point. The study's Table 2
(arXiv 2405.01851) has it: ResNet-18 with low-rank decomposition falls from 76.23 to 73.73 %, its memory from 47.24 to
15.61 MB. The curve through it is a parabola of the share of weights that is gone, as with pruning (`hetrl.accuracy`):
that shape, and that it holds for other models and other ways to factor, is assumed. Every number of it is `predicted`.
"""

from __future__ import annotations

import math

import onnx
from onnx import helper

from hetrl.errors import UsageError
from hetrl.zoo.blueprint import Blueprint, Fill, Weight, absent

MEASURED_KEPT = 15.61 / 47.24  # share of the network's weights
MEASURED_DROP_PCT = 76.23 - 73.73


def low_rank_drop_pct(kept_weights: float) -> float:
    """Percentage points of top-1 accuracy lost, predicted.

    :param kept_weights: share (above 0 to 1) of the whole network's weights that is left.
    """
    return round(MEASURED_DROP_PCT * ((1 - kept_weights) / (1 - MEASURED_KEPT)) ** 2, 4)


def rank_of(out_channels: int, in_channels: int, kernel: int, keep: float) -> int:
    """The largest rank that leaves at most the share `keep` of a kernel's weights; at least 1.

    :param kernel: elements of the window, k^2.
    """
    pair = in_channels * kernel + out_channels
    return max(1, math.floor(keep * out_channels * in_channels * kernel / pair))


def low_rank(network: Blueprint, keep: float) -> Blueprint:
    """The network with every ungrouped convolution of a window larger than 1 factored, the first one excepted.

    :param keep: share (0 to 1, both excluded) of each factored kernel's weights that stays.
    :raises UsageError: a share out of range.
    """
    if not 0 < keep < 1:
        raise UsageError(f"keeping {keep} of a kernel's weights makes no sense", "0 < keep < 1")
    weights = {weight.name: weight for weight in network.weights}
    graph, nodes = network.model.graph, []
    stem = next((node.output[0] for node in graph.node if node.op_type == "Conv"), None)
    for node in graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is None or node.output[0] == stem or not _factored(node, weight):
            nodes.append(node)
        else:
            nodes += _pair(node, weight, keep, weights)
    model = helper.make_model(
        helper.make_graph(nodes, graph.name, graph.input, graph.output, [absent(w) for w in weights.values()]),
        opset_imports=network.model.opset_import,
        ir_version=network.model.ir_version,
    )
    return Blueprint(model, tuple(weights.values()))


def _factored(node: onnx.NodeProto, weight: Weight) -> bool:
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return groups == 1 and math.prod(weight.shape[2:]) > 1


def _pair(
    node: onnx.NodeProto, weight: Weight, keep: float, weights: dict[str, Weight]
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The two convolutions; `weights` gets theirs for the old one, the bias stays with the second."""
    out, channels, *window = weight.shape
    rank = rank_of(out, channels, math.prod(window), keep)
    narrow = Weight(f"{weight.name}.narrow", (rank, channels, *window), Fill.HE, weight.gain)
    wide = Weight(f"{weight.name}.wide", (out, rank, *(1,) * len(window)), Fill.HE, 1.0)
    del weights[weight.name]
    weights |= {narrow.name: narrow, wide.name: wide}
    middle = f"{node.output[0]}.rank"
    first = onnx.NodeProto()
    first.CopyFrom(node)
    del first.input[:], first.output[:]
    first.input.extend([node.input[0], narrow.name])
    first.output.append(middle)
    first.name = middle
    second = helper.make_node(
        "Conv", [middle, wide.name, *node.input[2:]], [node.output[0]], name=node.name, kernel_shape=[1] * len(window)
    )
    return first, second
