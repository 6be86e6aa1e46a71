"""NN-Stretch (Wei et al., MobiSys'23): a network with one branch per processor, as wide as the processor is fast.

Its code is not public; this is a reading of the paper's description, without the training. Branches may meet at the
ends of stages, where the resolution changes. Between two such merge points each processor computes all layers with its
share of the channels (`plan.Axis.BRANCHES`); shares are first proportional to the processors' speed there, then
corrected until branches finish together. Of all ways to choose merge points the fastest by prediction is taken.

At a merge point every branch reads all channels. `support.stretch`, which counts operators, has branches read their
slices: with equal widths that would undo the merge.

A stage that some unit does not take is computed by the others. One with an operator that has no channels of its own
per branch, the part behind the last stage, and a network whose paths never meet run on the fastest single processor.
Ignores load and the screen. What the branches cost in accuracy is in `hetrl.accuracy`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt

from hetrl.agents.policies.base import Proposal
from hetrl.agents.policies.placing import usual_memory
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule, batch_of
from hetrl.device_bridge.surrogate.tables import MEMORIES, Option, Tables, build_tables, made_inside, supports
from hetrl.errors import UsageError
from hetrl.graph import OperatorGraph
from hetrl.plan import Axis, Memory
from hetrl.splits import CHANNEL_MULTIPLE
from hetrl.support.stretch import Merge, regions

Floats = npt.NDArray[np.float64]
CORRECTIONS = 4  # of widths that are proportional to speed


@dataclass(frozen=True)
class Stage:
    """Positions `start` to `end` (both in it), and the processors that may have branches there, the host last."""

    start: int
    end: int
    team: tuple[int, ...]


@dataclass(frozen=True)
class Stretch:
    """A stage, or several in one, in branches of these shares of the channels."""

    stage: Stage
    shares_pct: tuple[int, ...]
    slowest_ms: float = math.inf

    @property
    def option(self) -> Option:
        return Option(self.stage.team, Axis.BRANCHES, self.shares_pct)


def stretched(device: SurrogateDevice, units: Sequence[str]) -> Proposal:
    """The plan of NN-Stretch for the first processor of each unit, one of which is the CPU."""
    engine = device.engine
    found = [p.unit for p in engine.processors]
    host = found.index("cpu")
    team = (*(p for p in map(found.index, units) if p != host), host)
    memory = usual_memory(engine)
    tables = device.cost_model().tables
    stages = [_staffed(s, tables, team) for s in stages_of(device.graph)]
    stretches = [_widths(s, tables) for s in _joined(stages)]
    kept = _balanced([s for s in stretches if s is not None], tables, memory)
    options = (*(Option((p,)) for p in range(len(found))), *dict.fromkeys(s.option for s in kept))
    model = CostModel(build_tables(tables.workload, engine, options, 1), device.spec.idle_w.value)
    chosen = _merge_points(kept, model, host, memory)
    return Proposal(_filled(chosen, model, team, memory), options)


def stages_of(graph: OperatorGraph) -> list[range]:
    """Fusion groups between the ends of stages; none where paths do not meet behind the last convolution."""
    try:
        found = regions(graph, Merge.STAGE)
    except UsageError:
        return []
    stages, start = [], 0
    for region in found:
        inside = {graph.group_of_node[node] for node in region.nodes}
        end = max(g for g in inside if set(graph.groups[g].nodes) <= set(region.nodes) or g in inside) + 1
        stages.append(range(start, end))
        start = end
    return stages
