"""The shapes of the model that a plan's compression makes, planned without weights."""

from __future__ import annotations

from msgspec import UNSET

from hetrl.compress.channels import Ratio, kept_channels, pruned
from hetrl.compress.low_rank.planned import factored
from hetrl.compress.stages import by_stage, stages
from hetrl.compression import Compression
from hetrl.errors import PlanError
from hetrl.graph import OperatorGraph


def compressed_graph(graph: OperatorGraph, compression: Compression) -> OperatorGraph:
    """The graph after compression; see `pruned` for what stays as it was.

    :raises PlanError: not as many ratios as the network has stages.
    """
    smaller = pruned(graph, group_ratios(graph, compression), compression.multiple)
    return smaller if compression.low_rank is UNSET else factored(smaller, compression.low_rank)


def shares_gone(graph: OperatorGraph, compression: Compression) -> tuple[float, ...]:
    """Of each stage's channels that may go, the share that does: rounding makes it less than the ratio."""
    kept = kept_channels(graph, group_ratios(graph, compression), compression.multiple)
    groups, shares = graph.channels.groups, []
    for stage in stages(graph):
        there = sum(groups[index].size for index in stage.groups)
        shares.append(1 - sum(kept[index] for index in stage.groups) / there)
    return tuple(shares)


def group_ratios(graph: OperatorGraph, compression: Compression) -> Ratio:
    """The pruning ratio of every group of channels, or the one of all of them; raises the same errors."""
    ratios = compression.ratios
    if len(ratios) == 1:
        return ratios[0]
    count = len(stages(graph))
    if len(ratios) != count:
        raise PlanError(
            "compression.stage_ratios", f"are {len(ratios)}, and {graph.name} has {count} stages", "one for each stage"
        )
    return by_stage(graph, ratios)
