"""Stages: the groups of channels of one resolution, and ratios for each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from hetrl.errors import UnknownName, UsageError
from hetrl.graph import OperatorGraph

MOST_STAGES = 6


class Stage(msgspec.Struct, frozen=True):
    """A part of a network between changes of resolution.

    :param name: `s0` for the highest resolution, and so on.
    :param resolution: pixels (or tokens) of its feature maps, the largest where it joins several resolutions.
    :param groups: indices into `Channels.groups`; only those that may lose channels.
    """

    name: str
    resolution: int
    groups: tuple[int, ...]


def stages(graph: OperatorGraph) -> tuple[Stage, ...]:
    """The stages of a network, from the highest resolution to the lowest: at most 6, none if nothing may go.

    Vectors between larger maps (squeeze and excitation) belong to the resolution before them. Of more than six
    resolutions, the two neighbours that make the fewest channels are joined until six are left.
    """
    channels = graph.channels
    found: dict[int, list[int]] = {}
    for index, resolution in _resolutions(graph).items():
        found.setdefault(resolution, []).append(index)
    parts = [(resolution, found[resolution]) for resolution in sorted(found, reverse=True)]
    while len(parts) > MOST_STAGES:
        size = [sum(channels.groups[index].size for index in groups) for _, groups in parts]
        at = min(range(len(parts) - 1), key=lambda i: size[i] + size[i + 1])
        parts[at : at + 2] = [(parts[at][0], sorted(parts[at][1] + parts[at + 1][1]))]
    return tuple(Stage(f"s{i}", resolution, tuple(groups)) for i, (resolution, groups) in enumerate(parts))


def _resolutions(graph: OperatorGraph) -> dict[int, int]:
    """Of each prunable group."""
    maps = [index for index, node in enumerate(graph.nodes) if _is_map(graph.tensor_by_name[node.outputs[0]].shape)]
    last = max(maps, default=-1)
    current, found = 1, {}
    for index, group in enumerate(graph.channels.groups):
        inside = group.resolution == 1 and graph.node_index[group.makers[0]] < last
        current = current if inside else group.resolution
        if group.reason is None:
            found[index] = current
    return found


def _is_map(shape: tuple[int, ...]) -> bool:
    return math.prod(shape[2:]) > 1


def by_stage(graph: OperatorGraph, ratios: Sequence[float]) -> tuple[float, ...]:
    """One ratio per stage as one per group.

    :raises UsageError: not as many as there are stages.
    """
    parts = stages(graph)
    if len(ratios) != len(parts):
        raise UsageError(f"the network has {len(parts)} stages, and {len(ratios)} ratios were given")
    result = [0.0] * len(graph.channels.groups)
    for stage, ratio in zip(parts, ratios, strict=True):
        for index in stage.groups:
            result[index] = ratio
    return tuple(result)


def by_name(graph: OperatorGraph, ratios: Mapping[str, float], default: float = 0.0) -> tuple[float, ...]:
    """Ratios for some groups or stages by their names, groups first, as one per group.

    :param default: for all others.
    :raises UnknownName: neither a group nor a stage.
    """
    groups, parts = graph.channels.groups, stages(graph)
    known = [group.name for group in groups] + [stage.name for stage in parts]
    for name in ratios:
        if name not in known:
            raise UnknownName("channel group or stage", name, known, "those of the report")
    result = [default] * len(groups)
    for stage in parts:
        for index in stage.groups:
            result[index] = ratios.get(stage.name, default)
    return tuple(ratios.get(group.name, ratio) for group, ratio in zip(groups, result, strict=True))
