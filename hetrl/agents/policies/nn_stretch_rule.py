"""NN-Stretch (Wei et al., MobiSys'23): a network with one branch per processor, as wide as the processor is fast.

Its code is not public; this is a reading of the paper's description, without the training. Branches may meet at the
ends of stages, where the resolution changes. Between two such merge points each processor computes all layers with its
share of the channels (`plan.Axis.BRANCHES`); shares are first proportional to the processors' speed there, then
corrected until branches finish together. Of all ways to choose merge points the fastest by prediction is taken. Shares
are of the network's own channels, so that branches have fewer weights and less work than it; the paper's keep its
capacity, by how much wider branches is not known.

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
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

from hetrl.agents.policies.base import Proposal
from hetrl.agents.policies.placing import usual_memory
from hetrl.device_bridge.surrogate.cost_model import Answers, CostModel
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
    engine, tables = device.engine, device.cost_model().tables
    found = [p.unit for p in engine.processors]
    team = (*(found.index(unit) for unit in units if unit != "cpu"), found.index("cpu"))
    memory = usual_memory(engine)
    stages = [_staffed(stage, tables, team) for stage in stages_of(device.graph)]
    stretches = balanced(_joined(stages), tables, memory)
    options = (*(Option((p,)) for p in range(len(found))), *dict.fromkeys(s.option for s in stretches))
    model = CostModel(build_tables(tables.workload, engine, options, 1), device.spec.idle_w.value)
    return Proposal(_schedule(stretches, model, team, memory), options)


def stages_of(graph: OperatorGraph) -> list[range]:
    """Fusion groups between the ends of stages; none where paths do not meet behind the last convolution."""
    try:
        found = regions(graph, Merge.STAGE)
    except UsageError:
        return []
    ends = [graph.group_of_node[region.nodes[-1]] + 1 for region in found]
    return [range(start, end) for start, end in pairwise([0, *ends])]


def _staffed(stage: range, tables: Tables, team: Sequence[int]) -> Stage | None:
    """The stage with those of a team that take all of it; None if these cannot have branches."""
    items = tables.workload.items[stage.start : stage.stop]
    able = tuple(p for p in team if all(supports(tables.engine.processors[p], item) for item in items))
    fits = len(able) > 1 and all(item.splits_channels for item in items)
    return Stage(stage.start, stage.stop - 1, able) if fits else None


def _joined(stages: Sequence[Stage | None]) -> list[Stage]:
    """Every run of neighbours with the same team, as one stage."""
    runs = []
    for first, begin in enumerate(stages):
        for last in stages[first:]:
            if begin is None or last is None or last.team != begin.team:
                break
            runs.append(Stage(begin.start, last.end, begin.team))
    return runs


def balanced(stages: Sequence[Stage], tables: Tables, memory: Memory) -> list[Stretch]:
    """Each stage in branches whose slowest is fastest; stages with too few channels are left out.

    :param tables: with the single processors' options, under their own numbers.
    """
    weights = [1 / branch_ms(Stretch(s, ()), tables, memory) for s in stages]
    best: dict[Stage, Stretch] = {}
    for _ in range(1 + CORRECTIONS):
        tried = [
            Stretch(stage, shares)
            for stage, weight in zip(stages, weights, strict=True)
            if (shares := shares_of(weight, _least_pct(stage, tables))) is not None
        ]
        stages = [stretch.stage for stretch in tried]
        in_branches = build_tables(tables.workload, tables.engine, [s.option for s in tried], 1)
        weights = []
        for stretch in tried:
            took = branch_ms(stretch, in_branches, memory)
            slowest = float(took.max())
            if stretch.stage not in best or slowest < best[stretch.stage].slowest_ms:
                best[stretch.stage] = replace(stretch, slowest_ms=slowest)
            weights.append(np.array(stretch.shares_pct) / np.sqrt(took))  # inside, work grows with the square
    return list(best.values())


def branch_ms(stretch: Stretch, tables: Tables, memory: Memory) -> Floats:
    """Working time of each branch; of the whole stage on each of its processors where no shares are given."""
    m, stage = MEMORIES.index(memory), stretch.stage
    branch = tables.options.index(stretch.option) if stretch.shares_pct else None
    took = np.zeros(len(stage.team))
    for k in range(stage.start, stage.end + 1):
        offset = int(made_inside(tables.workload, k, stage.start)) if branch is not None else 0
        for i, p in enumerate(stage.team):
            took[i] += tables.time_ms[m, k, p if branch is None else branch, offset, p]
    return took


def shares_of(weights: Floats, least_pct: int) -> tuple[int, ...] | None:
    """Whole per cents in proportion to `weights`, none below `least_pct`; None if that cannot be."""
    if least_pct * len(weights) > 100:
        return None
    shares = np.maximum(least_pct, np.rint(100 * weights / weights.sum())).astype(np.int64)
    while shares.sum() != 100:
        shares[shares.argmax()] += 1 if shares.sum() < 100 else -1
    return tuple(shares.tolist())


def _least_pct(stage: Stage, tables: Tables) -> int:
    """The smallest share that leaves a branch channels of every operator."""
    channels = [item.geometry.out_channels for item in tables.workload.items[stage.start : stage.end + 1]]
    return math.ceil(100 * CHANNEL_MULTIPLE / min(channels))


def _schedule(stretches: Sequence[Stretch], model: CostModel, team: Sequence[int], memory: Memory) -> Schedule:
    """The fastest choice of merge points; what is left over, run by run on the processor that ends the plan soonest."""
    n, host = len(model.tables.workload.items), team[-1]
    branches = [Placed(s.stage.start, s.stage.end, model.tables.options.index(s.option), memory) for s in stretches]
    chosen = _merge_points(branches, _alone_ms(branches, model, host), n)
    where = [host] * n
    left = set(range(n)).difference(*(range(b.start, b.end + 1) for b in chosen))
    runs = [[k for _, k in run] for _, run in groupby(enumerate(sorted(left)), key=lambda place: place[1] - place[0])]
    for run in runs:
        ways = [[p if k in run and model.tables.possible[k, p] else where[k] for k in range(n)] for p in team]
        answers = _evaluated([_around(chosen, way, memory) for way in ways], model)
        where = ways[int(answers.latency_ms.argmin())]
    return _around(chosen, where, memory)


def _alone_ms(branches: Sequence[Placed], model: CostModel, host: int) -> list[float]:
    """How long each takes from host memory to host memory."""
    around = [host] * len(model.tables.workload.items)
    steps = _evaluated([_around([b], around, b.memory) for b in branches], model).steps
    return [float(steps.end_ms[b.end, i] - steps.begin_ms[b.start, i]) for i, b in enumerate(branches)]


def _merge_points(branches: Sequence[Placed], took_ms: Sequence[float], n: int) -> list[Placed]:
    """Branches that leave out the fewest positions, and of these the fastest."""
    best: list[tuple[int, float, list[Placed]]] = [(0, 0.0, [])]
    for end in range(n):
        left_out, spent, chosen = best[end]
        ways = [(left_out + 1, spent, chosen)]
        for placed, took in zip(branches, took_ms, strict=True):
            if placed.end == end:
                left_out, spent, chosen = best[placed.start]
                ways.append((left_out, spent + took, [*chosen, placed]))
        best.append(min(ways, key=lambda way: way[:2]))
    return best[n][2]


def _evaluated(schedules: Sequence[Schedule], model: CostModel) -> Answers:
    tables = model.tables
    return model.evaluate(batch_of(schedules, len(tables.workload.items), len(tables.engine.processors)), None)


def _around(branches: Sequence[Placed], where: Sequence[int], memory: Memory) -> Schedule:
    """Branches, and every other position on the single processor that `where` names."""
    begins, segments, k = {b.start: b for b in branches}, [], 0
    while k < len(where):
        segments.append(begins.get(k, Placed(k, k, where[k], memory)))
        k = segments[-1].end + 1
    return Schedule(tuple(segments))
