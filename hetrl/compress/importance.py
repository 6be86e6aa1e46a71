"""How much each channel matters, by the numbers that make it or by what it carries.

Every tensor's values are divided by their mean first, so that layers of different scales can be compared; what several
tensors say of one channel (a residual stream has many makers) is averaged. Li et al., "Pruning Filters for Efficient
ConvNets" (ICLR 2017) for L1 norms, Liu et al., "Learning Efficient Convolutional Networks through Network Slimming"
(ICCV 2017) for the scales of batch normalization, Molchanov et al., "Pruning Convolutional Neural Networks for Resource
Efficient Inference" (ICLR 2017) for mean activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum

import numpy as np
import onnx
from numpy.typing import NDArray

from hetrl.compress.activations import fetched
from hetrl.compress.constants import Array, Constants
from hetrl.errors import UsageError
from hetrl.graph import OperatorGraph
from hetrl.graph.channels import ChannelAxis, Role

Scores = NDArray[np.float64]
"""One number per channel of `OperatorGraph.channels`; NaN where nothing is known."""


class Importance(StrEnum):
    """What a channel is judged by."""

    L1 = "l1"  # mean absolute weight of all that make it
    L2 = "l2"  # root of the mean square
    BATCH_NORM = "batch_norm"  # absolute scale of the normalization behind it; L1 where there is none
    ACTIVATION = "activation"  # mean absolute value on calibration inputs, where products read it


def scores(
    model: onnx.ModelProto,
    graph: OperatorGraph,
    importance: Importance,
    inputs: Iterable[Mapping[str, Array]] = (),
) -> Scores:
    """The importance of every channel.

    :param model: complete.
    :param graph: of that model.
    :param inputs: batches by input name, for `Importance.ACTIVATION`.
    :raises UsageError: no inputs where they are needed.
    :raises MissingExtra: activations need ONNX Runtime.
    """
    constants = Constants(model, {tensor.name: tensor.shape for tensor in graph.tensors})
    norm = _l2 if importance is Importance.L2 else _l1
    by_weight = _gathered(graph, _weights(graph, constants, Role.MAKES, norm))
    if importance in (Importance.L1, Importance.L2):
        return by_weight
    if importance is Importance.BATCH_NORM:
        better = _gathered(graph, _weights(graph, constants, Role.SCALES, _l1))
    else:
        better = _gathered(graph, _activations(model, graph, inputs))
    return np.where(np.isnan(better), by_weight, better)


def _gathered(graph: OperatorGraph, found: Iterable[tuple[ChannelAxis, Scores]]) -> Scores:
    """The mean over all places of a channel, each tensor's values over their mean."""
    size = len(graph.channels.group_of)
    total, count = np.zeros(size), np.zeros(size)
    for axis, values in found:
        here = axis.atoms >= 0
        mean = float(values.mean())
        np.add.at(total, axis.atoms[here], values[here] / mean if mean > 0 else 0.0)
        np.add.at(count, axis.atoms[here], 1)
    with np.errstate(invalid="ignore"):
        return total / count


def _weights(
    graph: OperatorGraph, constants: Constants, role: Role, norm: Callable[[Array, int], Scores]
) -> Iterator[tuple[ChannelAxis, Scores]]:
    for step in graph.channels.traced:
        for (position, number), is_ in step.roles.items():
            axis, operand = step.operands[position][number], step.operator.operands[position]
            if is_ is role and axis is not None and operand is not None:
                yield axis, norm(constants.value(operand.name), number)


def _l1(array: Array, axis: int) -> Scores:
    others = tuple(a for a in range(array.ndim) if a != axis)
    return np.asarray(np.abs(array).mean(others, dtype=np.float64))


def _l2(array: Array, axis: int) -> Scores:
    others = tuple(a for a in range(array.ndim) if a != axis)
    squares = np.square(array, dtype=np.float32)
    return np.asarray(np.sqrt(squares.mean(others, dtype=np.float64)))


def _activations(
    model: onnx.ModelProto, graph: OperatorGraph, inputs: Iterable[Mapping[str, Array]]
) -> list[tuple[ChannelAxis, Scores]]:
    """Of each tensor that a product with weights reads."""
    found = _read_by_products(graph)
    batches = list(inputs)
    if not batches:
        raise UsageError("importance by activation needs inputs to run the model on", "or choose l1")
    sums: dict[str, Scores] = {}
    for name, array in fetched(model, list(found), batches):
        sums[name] = sums.get(name, 0.0) + _l1(array, found[name][1])
    return [(found[name][0], values) for name, values in sums.items()]


def _read_by_products(graph: OperatorGraph) -> dict[str, tuple[ChannelAxis, int]]:
    """Axis with channels of each activation that is multiplied with weights, by its name."""
    found: dict[str, tuple[ChannelAxis, int]] = {}
    for step in graph.channels.traced:
        if Role.TAKES not in step.roles.values():
            continue
        for position, axes in step.operands.items():
            operand = step.operator.operands[position]
            if operand is None or operand.constant:
                continue
            for number, axis in enumerate(axes):
                if axis is not None:
                    found.setdefault(operand.name, (axis, number))
    return found
