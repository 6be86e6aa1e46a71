"""What CoDL can be told to do with a model, and the best plan of that kind; the sources are those of `codl`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from hetrl.agents.exact import Exact, exact
from hetrl.compression import NO_COMPRESSION, Compression
from hetrl.condition import Condition
from hetrl.device_bridge.surrogate.compile import plan_of
from hetrl.device_bridge.surrogate.conditions import COLD, load_of
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.tables import Option
from hetrl.envs.space import Bools
from hetrl.export.base import Carries, Limit, Wish, unit_of
from hetrl.export.codl_order import shared_operators
from hetrl.export.expected import engine_set
from hetrl.export.lowering import Expressible, nothing
from hetrl.export.mace import memory_of
from hetrl.export.texts import limits, segment_of
from hetrl.graph import OperatorGraph, OpKind
from hetrl.plan import Axis, MadeBy, Memory, Plan, Segment
from hetrl.support.rules import rule_set


@dataclass(frozen=True)
class Allowed:
    """Where a fusion group may be: axes that it may be shared along, and units that may have all of it."""

    axes: frozenset[Axis]
    units: frozenset[str]
    reason: str

    def takes(self, axis: Axis, unit: str) -> bool:
        return unit in self.units if axis is Axis.NONE else axis in self.axes


def allowed(graph: OperatorGraph, memory: Memory) -> tuple[Allowed, ...]:
    """What CoDL's files can say of each fusion group."""
    kinds = {found.node: found.kind for found in shared_operators(graph)}
    both = frozenset({"cpu", "gpu"})
    found = []
    for group in graph.groups:
        nodes = [graph.nodes[n] for n in group.nodes]
        kind = next((kinds[node.id] for node in nodes if node.id in kinds), None)
        dilated = any(max(n.geometry.dilation_h, n.geometry.dilation_w) > 1 for n in nodes if n.id in kinds)
        if dilated:
            found.append(Allowed(frozenset(), frozenset(), "CoDL stops at a dilated convolution"))
        elif kind == "Conv2D" and memory is Memory.IMAGE:
            found.append(Allowed(frozenset({Axis.HEIGHT, Axis.OUTPUT_CHANNELS}), both, ""))
        elif kind is not None:
            what = "in OpenCL buffers" if kind == "Conv2D" else f"as a {kind}"
            reason = f"CoDL shares along output channels alone {what}"
            found.append(Allowed(frozenset({Axis.OUTPUT_CHANNELS}), both, reason))
        else:
            working = [n for n in nodes if n.geometry.kind is not OpKind.VIEW]
            on_gpu = bool(working) and all(_on_gpu(n.op_type, n.geometry.kind) for n in working)
            where = "on the GPU" if on_gpu else "on one processor"
            units = frozenset({"gpu"}) if on_gpu else both
            found.append(Allowed(frozenset(), units, f"not in CoDL's files, runs whole, {where}"))
    return tuple(found)


def _on_gpu(op_type: str, kind: OpKind) -> bool:
    """Whether CoDL's GPU takes an operator: MACE's list, and products with constant matrices."""
    return kind is OpKind.GEMM or rule_set("mace_gpu").onnx_refusal(op_type) is None


def places_refused(plan: Plan, graph: OperatorGraph) -> tuple[Limit, ...]:
    """Operators that cannot be where the plan has them."""
    placed, reasons = segment_of(plan), dict[str, list[str]]()
    for group, may in zip(graph.groups, allowed(graph, memory_of(plan)), strict=True):
        node = graph.nodes[group.anchor].id
        if not may.takes(placed[node].axis, unit_of(placed[node].processors[0])):
            reasons.setdefault(may.reason, []).append(node)
    return limits(reasons)


def done_without(plan: Plan, graph: OperatorGraph) -> Iterator[Limit]:
    """Chains, and additions that are not shared with the convolution before them."""
    chains = len(without_chains(plan, graph).segments) - len(plan.segments)
    if chains:
        yield Limit("segments", f"chains are not in the files: {chains} operators more are shared by themselves")
    placed, kinds = segment_of(plan), {found.node for found in shared_operators(graph)}
    additions = 0
    for group in graph.groups:
        nodes = [graph.nodes[n] for n in group.nodes]
        away = any(unit_of(processor) != "gpu" for processor in placed[nodes[-1].id].processors)
        if away and any(n.id in kinds for n in nodes):
            additions += sum(n.op_type == "Add" and len(n.inputs) == 2 for n in nodes)
    if additions:
        yield Limit("segments", f"{additions} additions behind convolutions run whole, on the GPU")


def without_chains(plan: Plan, graph: OperatorGraph) -> Plan:
    """The plan with each operator of a chain shared by itself."""
    segments: list[Segment] = []
    for segment in plan.segments:
        held = dict.fromkeys(graph.group_of_node[graph.node_index[node]] for node in segment.nodes)
        parted = segment.axis is Axis.HEIGHT and len(held) > 1
        segments += [replace(segment, nodes=graph.group_node_ids(g)) for g in held] if parted else [segment]
    return replace(plan, segments=tuple(segments))


class _Unchained(SurrogateDevice):
    """The surrogate, whose standard model has no chains."""

    def cost_model(
        self,
        compression: Compression = NO_COMPRESSION,
        options: tuple[Option, ...] | None = None,
        condition: Condition = COLD,
    ) -> CostModel:
        """See `SurrogateDevice.cost_model`."""
        return self._models(compression, None, options or self.options, 1, load_of(condition))


class _Space(Expressible):
    """What CoDL carries with one memory type."""

    def __init__(self, device: SurrogateDevice, carries: Carries, memory: Memory) -> None:
        super().__init__(device, carries)
        self.memories = (memory,)
        units = [unit_of(self.engine.processors[option.processors[0]].id) for option in self.options]
        self._takes = np.array(
            [
                [may.takes(option.axis, unit) for option, unit in zip(self.options, units, strict=True)]
                for may in allowed(self.graph, memory)
            ]
        )

    def possible_at(self, compression: Compression) -> Bools:
        """See `PlanSpace.possible_at`."""
        found: Bools = super().possible_at(compression) & self._takes
        return found


def best_for_codl(wish: Wish, carries: Carries) -> Plan:
    """The fastest plan that CoDL carries without loss, in buffers or in images.

    :raises Infeasible: there is none.
    """
    plan, graph = wish.plan, wish.graph
    device = _Unchained(wish.spec, graph, engine_set(plan, wish.spec))
    best: tuple[Exact, _Space] | None = None
    for memory in (Memory.IMAGE, Memory.BUFFER):
        space = _Space(device, carries, memory)
        if not space.possible_at(space.compressions[0]).any(axis=1).all():
            continue
        found = exact(space, wish.objective, wish.condition)
        if found.schedule is not None and (best is None or found.latency_ms < best[0].latency_ms):
            best = found, space
    if best is None or best[0].schedule is None:
        names = ", ".join(processor.id for processor in device.engine.processors)
        raise nothing(f"CoDL carries no plan for {plan.device} that runs on {names}", wish.objective)
    made = plan_of(
        best[0].schedule,
        graph,
        device.options,
        device.engine,
        device=plan.device,
        made_by=MadeBy(method="lowered"),
    )
    return replace(made, model=plan.model, compression=plan.compression)
