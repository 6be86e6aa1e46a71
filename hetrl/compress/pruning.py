"""Structured channel pruning of a model with weights: the result is a smaller model, not masks.

Groups of channels that go together (`hetrl.graph.channels`) each lose a share of their channels, the least important
ones. What is planned without weights (`hetrl.compress.channels`) and what is done here have the same shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import inliner

from hetrl.compress.bounds import holds_indices
from hetrl.compress.channels import Ratio, kept_channels, pruned
from hetrl.compress.compensate import Moments, compensated
from hetrl.compress.constants import Array
from hetrl.compress.importance import Importance, Scores, scores
from hetrl.compress.open_sizes import closed_unless_open
from hetrl.compress.surgery import places, without
from hetrl.errors import ModelError
from hetrl.graph import OperatorGraph
from hetrl.graph.channels import ChannelGroup, Role
from hetrl.graph.reader import graph_from_model

InputShapes = Mapping[str, tuple[int, ...]]


class PrunedGroup(msgspec.Struct, frozen=True):
    """One group of channels before and after."""

    group: ChannelGroup
    kept: int

    @property
    def share(self) -> float:
        """Of the channels, what is gone."""
        return 1 - self.kept / self.group.size


class PruningReport(msgspec.Struct, frozen=True, kw_only=True):
    """What pruning did.

    :param parameters: before and after, as `OperatorGraph.parameters` counts them.
    :param macs: multiply-accumulates of one inference, before and after.
    :param weight_bytes: of constants, before and after.
    """

    groups: tuple[PrunedGroup, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    weight_bytes: tuple[int, int]

    @property
    def whole(self) -> tuple[ChannelGroup, ...]:
        """Groups that must keep all channels; their `reason` says why."""
        return tuple(part.group for part in self.groups if part.group.reason is not None)


class Removed(msgspec.Struct, frozen=True):
    """Places that one constant lost along one axis.

    :param taken: whether they were weights on channels that other constants make, rather than made a channel.
    """

    constant: str
    axis: int
    places: tuple[int, ...]
    taken: bool


@dataclass(frozen=True)
class Pruned:
    """A smaller model, and how it came about.

    :param graph: of `model`, without regrouping: planned from the original's.
    """

    model: onnx.ModelProto
    graph: OperatorGraph
    report: PruningReport
    removed: tuple[Removed, ...]


def prune(
    model: onnx.ModelProto,
    ratio: Ratio,
    *,
    importance: Importance = Importance.L1,
    multiple: int = 4,
    inputs: Iterable[Mapping[str, Array]] = (),
    input_shapes: InputShapes | None = None,
    known: Moments | None = None,
) -> Pruned:
    """Take the least important channels out of a model. Equal ones go from the last to the first.

    What a channel adds to the sums that it is part of goes with it: nothing, if its weights are zeros, unless it passes
    a function that makes something of zero (a sigmoid that gates nothing, say).

    Nodes keep their names and outputs; inputs and outputs of the model keep their shapes. Sizes that the model leaves
    open stay so where what it computes from them need not be fixed.

    :param model: complete (see `hetrl.compress.weights`); not changed.
    :param ratio: share of channels that goes, 0 to below 1: of every group, or one per group (`by_stage`, `by_name`).
    :param multiple: channels stay in multiples of it, rounded up.
    :param inputs: batches by input name, for `Importance.ACTIVATION`.
    :param input_shapes: sizes that the model leaves open.
    :param known: of this model; weights take over what lost channels carried (`compress.compensate`).
    :raises UsageError: a ratio or multiple out of range, or inputs missing.
    :raises ModelError: no valid model, or its weights are missing.
    """
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = graph_from_model(model, name=model.graph.name, input_shapes=input_shapes)
    planned = pruned(graph, ratio, multiple)
    kept = kept_channels(graph, ratio, multiple)
    report = _report(graph, planned, kept)
    if planned is graph:
        return Pruned(model, graph, report, ())
    stays = _stays(graph, kept, scores(model, graph, importance, inputs))
    fitted = model if known is None else compensated(model, graph, stays, known)
    result = without(fitted, graph, stays)
    _verify(result, planned, input_shapes)
    result = closed_unless_open(model, result, input_shapes or {})
    return Pruned(result, planned, report, _removed(graph, stays))


def _stays(graph: OperatorGraph, kept: tuple[int, ...], importance: Scores) -> NDArray[np.bool_]:
    stays = np.ones(len(graph.channels.group_of), bool)
    for index, (group, stay) in enumerate(zip(graph.channels.groups, kept, strict=True)):
        if stay < group.size:
            members = graph.channels.members(index)
            order = np.lexsort((-members, importance[members]))
            stays[members[order[: group.size - stay]]] = False
    return stays


def _report(graph: OperatorGraph, planned: OperatorGraph, kept: tuple[int, ...]) -> PruningReport:
    groups = zip(graph.channels.groups, kept, strict=True)
    return PruningReport(
        groups=tuple(PrunedGroup(group, stay) for group, stay in groups),
        parameters=(graph.parameters, planned.parameters),
        macs=(graph.macs, planned.macs),
        weight_bytes=(graph.weight_bytes, planned.weight_bytes),
    )


def _removed(graph: OperatorGraph, stays: NDArray[np.bool_]) -> tuple[Removed, ...]:
    found: dict[tuple[str, int], Removed] = {}
    for step in graph.channels.traced:
        for position, axes in step.operands.items():
            operand = step.operator.operands[position]
            if operand is None or not operand.constant or holds_indices(step.operator, position):
                continue
            for number, axis in enumerate(axes):
                if axis is None:
                    continue
                gone = np.flatnonzero(~places(axis, stays))
                if gone.size:
                    taken = step.roles.get((position, number)) is Role.TAKES
                    removed = Removed(operand.name, number, tuple(gone.tolist()), taken)
                    found[operand.name, number] = removed
    return tuple(found.values())


def _verify(result: onnx.ModelProto, planned: OperatorGraph, shapes: InputShapes | None) -> None:
    """What was made must be what was planned; a wrong model never leaves this module."""
    made = graph_from_model(result, name=planned.name, input_shapes=shapes).tensor_by_name
    for tensor in planned.tensors:
        if tensor.name in made and made[tensor.name].shape != tensor.shape:
            raise ModelError(
                f"pruning made {tensor.name!r} of the shape {made[tensor.name].shape} instead of {tensor.shape}",
                "please report this model",
            )
