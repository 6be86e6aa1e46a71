"""Reuse of intermediate results over the frames of a video (arXiv 2405.01851, section 3.2.4 and table 4).

Two things are here. `stream_ms` is a mechanism on top of any measured plan, without a fitted number: of each
`frames + 1` successive frames the later ones take what the first `layers` steps made from the earliest one. `ReuseFit`
is a curve for Table 4, whose network, levels and video the study does not describe: latency falls with both levels
(a sum), visual quality with how stale the data are times how much is stale (a product). Its two numbers are fitted to
the row of level (1, 1); the row (2, 2) is left to be predicted. The two forms were chosen with both rows in sight.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import msgspec

from hetrl.errors import UsageError
from hetrl.graph import OperatorGraph
from hetrl.measurement import SegmentTiming
from hetrl.plan import Plan, Segment
from hetrl.plan_check import check_plan


@dataclass(frozen=True)
class Reuse:
    """Levels of reuse: `frames` that live on data of an earlier one, `layers` whose results they take; 0 for none."""

    frames: int
    layers: int

    def __post_init__(self) -> None:
        if self.frames < 0 or self.layers < 0:
            raise UsageError(f"reuse of {self.frames} frames and {self.layers} layers makes no sense", "0 or more")


@dataclass(frozen=True)
class ReuseRow:
    """A row of Table 4; `vmaf` is Netflix's 0 to 100 score of visual quality."""

    reuse: Reuse
    latency_ms: float
    vmaf: float


@cache
def study_rows() -> tuple[ReuseRow, ...]:
    """Table 4 as published."""
    with (resources.files("hetrl.data") / "study_reuse.csv").open(encoding="utf-8") as file:
        return tuple(
            ReuseRow(
                Reuse(int(row["frame_level_reuse"]), int(row["layer_level_reuse"])),
                float(row["latency_per_frame_ms"]),
                float(row["vmaf"]),
            )
            for row in csv.DictReader(file)
        )


@dataclass(frozen=True)
class ReuseFit:
    """Shares of the latency and of the quality without reuse that are lost.

    :param saved_per_level: of the latency, for each level of either kind.
    :param lost_per_product: of the quality, for each frame times layer.
    """

    plain: ReuseRow
    saved_per_level: float
    lost_per_product: float

    @classmethod
    def to(cls, plain: ReuseRow, row: ReuseRow) -> ReuseFit:
        """The curve through a row without reuse and one with reuse on both levels."""
        levels, product = row.reuse.frames + row.reuse.layers, row.reuse.frames * row.reuse.layers
        if not product or plain.reuse != Reuse(0, 0):
            raise UsageError("a curve of reuse needs a row without and one with both levels", "give Table 4's rows")
        return cls(plain, (1 - row.latency_ms / plain.latency_ms) / levels, (1 - row.vmaf / plain.vmaf) / product)

    def latency_ms(self, reuse: Reuse) -> float:
        """Latency per frame; never below 0."""
        return self.plain.latency_ms * max(0.0, 1 - self.saved_per_level * (reuse.frames + reuse.layers))

    def vmaf(self, reuse: Reuse) -> float:
        """Visual quality; never below 0."""
        return self.plain.vmaf * max(0.0, 1 - self.lost_per_product * reuse.frames * reuse.layers)


def stream_ms(steps_ms: Sequence[float], reuse: Reuse) -> float:
    """Mean latency per frame of a stream, by the mechanism.

    :param steps_ms: time of each step of one inference, in order.
    """
    taken = sum(steps_ms[: reuse.layers])
    return sum(steps_ms) - taken * reuse.frames / (reuse.frames + 1)


def by_group(plan: Plan, graph: OperatorGraph) -> Plan:
    """The same plan with every segment on one processor cut into its fusion groups, the steps that can be reused.

    Where two groups on one processor meet costs nothing, so that the latency stays. A split segment stays whole: its
    parts never see the results between its groups.
    """
    segments = []
    for segment, groups in zip(plan.segments, check_plan(plan, graph), strict=True):
        if len(segment.parts) > 1:
            segments.append(segment)
            continue
        segments += [
            Segment(nodes=graph.group_node_ids(g), parts=segment.parts, axis=segment.axis, memory=segment.memory)
            for g in groups
        ]
    return msgspec.structs.replace(plan, segments=tuple(segments))


def steps_ms(timings: Sequence[SegmentTiming]) -> tuple[float, ...]:
    """Time of each step of a measured plan whose segments run one after the other."""
    return tuple(timing.end_ms - timing.start_ms for timing in timings)
