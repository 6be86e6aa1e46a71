"""Unit subgraphs and their profile (Band: mrsnu/band, band/model_analyzer.cc; Jeong et al., MobiSys'22).

For every operator a bit mask of the workers that take it; the CPU takes all. A region that an accelerator takes, grown
as far as operands allow, is dropped from that worker if it has fewer than 7 operators. Units then grow from the
resolved frontier over equal masks. A subgraph is a run of consecutive units that one worker takes (Band's "merge
unit subgraphs", its default).

Operators are counted as Band does, in nodes of the model; fusion groups stay whole. Units follow each other in Band's
own order, which differs from the graph's where branches of different masks lie side by side: `Units.order` says how.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hetrl.agents.policies.placing import usual_memory
from hetrl.condition import Condition
from hetrl.device_bridge.surrogate.chains import position_work
from hetrl.device_bridge.surrogate.conditions import COLD, study_effects, under
from hetrl.device_bridge.surrogate.cost_model import HOST_HOME, CostModel
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.tables import MEMORIES, Option, build_tables
from hetrl.device_bridge.surrogate.workload import workload_of
from hetrl.graph import OperatorGraph
from hetrl.plan import DEFAULT_QUEUE_WINDOW

Floats = npt.NDArray[np.float64]
Label = TypeVar("Label", bound=Hashable)
MIN_NODES = 7  # minimum_subgraph_size of Band's SubgraphConfig


@dataclass(frozen=True)
class Units:
    """Fusion groups in Band's order, unit after unit.

    :param members: groups of each unit, ascending; together all groups.
    :param masks: workers that take each unit; bit w is the engine's processor w.
    """

    members: tuple[tuple[int, ...], ...]
    masks: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """All groups in the order in which Band would run them; topological."""
        return tuple(group for unit in self.members for group in unit)

    @property
    def bounds(self) -> tuple[int, ...]:
        """Place in `order` of each unit's first group, and the end."""
        return (0, *accumulate(len(unit) for unit in self.members))


def grown(predecessors: Sequence[Sequence[int]], labels: Sequence[Label], begin: Label) -> list[tuple[int, ...]]:
    """Groups in regions of one label, each grown from the resolved frontier as far as it goes.

    :param labels: one per group; groups are in topological order.
    :param begin: the label that may start; afterwards it is that of the first group whose operands are there.
    """
    regions, label = [], begin
    remaining, done = list(range(len(labels))), set[int]()
    while remaining:
        region = []
        for group in remaining:
            if labels[group] == label and done.issuperset(predecessors[group]):
                region.append(group)
                done.add(group)
        if region:
            regions.append(tuple(region))
        remaining = [group for group in remaining if group not in done]
        label = next((labels[g] for g in remaining if done.issuperset(predecessors[g])), begin)
    return regions


def unit_subgraphs(
    graph: OperatorGraph, takes: npt.NDArray[np.bool_], always: int, min_nodes: int = MIN_NODES
) -> Units:
    """The units of a model.

    :param takes: (n, P) whether processor p takes group k.
    :param always: the CPU, which takes every group, in regions of any size.
    """
    masks = [0] * len(graph.groups)
    for worker in range(takes.shape[1]):
        for region in grown(graph.predecessors, takes[:, worker].tolist(), True):
            large = sum(len(graph.groups[g].nodes) for g in region) >= min_nodes
            for group in region:
                if worker == always or (takes[group, worker] and large):
                    masks[group] |= 1 << worker
    members = tuple(grown(graph.predecessors, masks, masks[0]))
    return Units(members, tuple(masks[unit[0]] for unit in members))


@dataclass(frozen=True)
class Profile:
    """What every subgraph takes by itself.

    :param expected_ms: (U, U, P) units i to j on processor p; inf where it does not take them all, or j < i.
    """

    units: Units
    cpu: int
    expected_ms: Floats


def profile(device: SurrogateDevice, condition: Condition = COLD, min_nodes: int = MIN_NODES) -> Profile:
    """Predict what Band measures: each subgraph by itself, operands brought from host memory, results back to it."""
    engine, graph = device.engine, device.graph
    tables = device.cost_model().tables
    workers = len(engine.processors)
    cpu = next(i for i, p in enumerate(engine.processors) if p.unit == "cpu")
    units = unit_subgraphs(graph, tables.possible[:, :workers], cpu, min_nodes)
    singles = [Option((p,)) for p in range(workers)]
    in_order = build_tables(workload_of(graph, units.order), engine, singles, 1)
    model = CostModel(under(in_order, condition, study_effects()), device.spec.idle_w.value)
    return Profile(units, cpu, _subgraphs_ms(model, units))


def _subgraphs_ms(model: CostModel, units: Units) -> Floats:
    tables, count, bounds = model.tables, len(units.masks), units.bounds
    workers = len(tables.engine.processors)
    memory = usual_memory(tables.engine)
    m = MEMORIES.index(memory)
    work = position_work(model, memory, DEFAULT_QUEUE_WINDOW, np.inf, (1.0,) * workers)[:, :workers, 0]
    if tables.stall_ms is not None:
        work = work + tables.stall_ms[m, :, :workers, 0]
    items, last_use, made_at = tables.workload.items, tables.workload.last_use, tables.workload.made_at
    expected = np.full((count, count, workers), np.inf)
    for worker in range(workers):
        home = int(model.home_of[worker, m])
        bring = model.conversion_ms[:, 1 << HOST_HOME, home]
        give = model.conversion_ms[:, 1 << home, HOST_HOME]
        for first in range(count):
            spent, read, made = 0.0, set[int](), set[int]()
            for last in range(first, count):
                if not units.masks[last] >> worker & 1:
                    break
                for place in range(bounds[last], bounds[last + 1]):
                    spent += float(work[place, worker])
                    read |= {r.tensor for r in items[place].reads if made_at[r.tensor] < bounds[first]}
                    made |= set(items[place].writes)
                left = sorted(t for t in made if last_use[t] >= bounds[last + 1])
                moved = sum(float(bring[t]) for t in sorted(read)) + sum(float(give[t]) for t in left)
                expected[first, last, worker] = spent + moved
    return expected
