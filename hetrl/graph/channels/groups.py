"""What a trace found: groups of channels, and how every axis is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from hetrl.graph.channels.atoms import Labels
from hetrl.graph.channels.tracer import Role
from hetrl.graph.operator import Operator


class ChannelGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Channels that lie in the same tensors, so that any number of them may go.

    :param name: the operator that makes them first; `#2` and so on tell several groups of one operator apart.
    :param size: how many there are; each is what must go together: one channel, or several of different tensors.
    :param width: places that each takes in what convolutions and products read and make: what they come in multiples
        of (3 groups of a grouped convolution lose their channels together, say).
    :param makers: ids of the operators whose weights make them, in order.
    :param resolution: pixels, or tokens, of what is made of them.
    :param reason: why they must all stay; None where they need not.
    """

    name: str
    size: int
    width: int
    makers: tuple[str, ...]
    resolution: int
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class ChannelAxis:
    """An axis some of whose places may go.

    :param atoms: for each place the channel in `Channels`' numbering, -1 where it always stays.
    :param fixed: places that always stay.
    :param parts: (group, places that each of its channels takes).
    """

    atoms: Labels
    fixed: int
    parts: tuple[tuple[int, int], ...]

    def size(self, kept: Sequence[int]) -> int:
        """Places that are left.

        :param kept: channels that stay, by group.
        """
        return self.fixed + sum(kept[group] * repeat for group, repeat in self.parts)


Axes = tuple[ChannelAxis | None, ...]
"""The axes of a tensor; None for those that stay whole."""


@dataclass(frozen=True)
class Traced:
    """One operator: where its operands (by position) and results have channels that may go.

    :param roles: what axes of constants mean, by position and axis.
    :param counts: attributes that hold the size of an axis.
    """

    operator: Operator
    operands: dict[int, Axes]
    results: tuple[Axes, ...]
    roles: dict[tuple[int, int], Role]
    counts: dict[str, ChannelAxis]

    @property
    def touched(self) -> bool:
        """Whether pruning can change it at all."""
        return any(axis for axes in (*self.operands.values(), *self.results) for axis in axes)


@dataclass(frozen=True)
class Channels:
    """The channels of a graph.

    :param groups: in the order of their first makers.
    :param group_of: for each channel its group, -1 where it stays.
    :param traced: one per operator, in their order.
    """

    groups: tuple[ChannelGroup, ...]
    group_of: Labels
    traced: tuple[Traced, ...]

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """Groups that may lose channels."""
        return tuple(group for group in self.groups if group.reason is None)

    def members(self, group: int) -> Labels:
        """The channels of a group, in their order."""
        return np.flatnonzero(self.group_of == group)
