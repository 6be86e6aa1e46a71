"""The best plan that a format can carry, where it cannot carry the one that was found."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from hetrl.agents.exact import exact
from hetrl.compression import Compression
from hetrl.condition import Condition
from hetrl.device_bridge.spec import DeviceSpec
from hetrl.device_bridge.surrogate.compile import plan_of
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.envs.space import Bools, PlanSpace
from hetrl.errors import Infeasible
from hetrl.export.base import Carries, unit_of
from hetrl.export.claims import carried
from hetrl.export.expected import engine_set
from hetrl.graph import OperatorGraph
from hetrl.objective import Objective
from hetrl.plan import Axis, MadeBy, Plan


class Expressible(PlanSpace):
    """The plans of a space that a format carries as they are."""

    def __init__(self, device: SurrogateDevice, carries: Carries) -> None:
        super().__init__(device, Objective())
        together = carries.axes if carries.shares_together else frozenset({Axis.NONE})
        takes = np.array([carries.takes(p.id) is None for p in self.engine.processors])
        axes = np.array([option.axis in together for option in self.options])
        self._carried: Bools = axes & np.array([bool(takes[list(o.processors)].all()) for o in self.options])
        self.branches = self.branches and carries.overlap and not carries.one_processor

    def possible_at(self, compression: Compression) -> Bools:
        """See `PlanSpace.possible_at`."""
        allowed: Bools = super().possible_at(compression) & self._carried
        return allowed


def lowered(plan: Plan, graph: OperatorGraph, spec: DeviceSpec, carries: Carries, condition: Condition) -> Plan:
    """The fastest plan for the same device, compression and condition that a format carries without loss.

    :param graph: of the model that runs, compressed as the plan says.
    :raises Infeasible: the device has no processor that the format knows and that takes all operators.
    """
    device = SurrogateDevice(spec, graph, engine_set(plan, spec))
    space = Expressible(device, carries)
    possible = space.possible_at(space.compressions[0])
    if carries.one_processor:
        return _for(plan, _on_one(plan, space, possible, condition), carries)
    found = exact(space, Objective(), condition) if possible.any(axis=1).all() else None
    if found is None or found.schedule is None:
        raise _nothing(plan, space)
    best = plan_of(
        found.schedule, graph, space.options, space.engine, device=plan.device, made_by=MadeBy(method="lowered")
    )
    return _for(plan, best, carries)


def _on_one(plan: Plan, space: PlanSpace, possible: Bools, condition: Condition) -> Plan:
    """The best processor for the whole model; what it does not take falls back to the CPU, as the runtime has it."""
    candidates = np.flatnonzero(possible.any(axis=0) & space.single).tolist()
    best: tuple[float, Plan] | None = None
    for option in candidates:
        for memory in space.memories:
            schedule = Schedule((Placed(0, space.groups - 1, option, memory),))
            made = plan_of(
                schedule, space.graph, space.options, space.engine, device=plan.device, made_by=MadeBy(method="lowered")
            )
            measured = space.device.measure(made, condition)
            if measured.latency_ms is not None and (best is None or measured.latency_ms < best[0]):
                best = measured.latency_ms, made
    if best is None:
        raise _nothing(plan, space)
    return best[1]


def _for(plan: Plan, best: Plan, carries: Carries) -> Plan:
    """The best placement with the given plan's model, and its settings as far as the format has words for them."""
    used = set(best.processors)
    accelerated = any(unit_of(name) != "cpu" for name in used)
    settings = {
        "caps": tuple(cap for cap in plan.caps if cap.processor in used),
        "process_cap": plan.process_cap,
        "queue_window": plan.queue_window if accelerated else None,
        "kernel_slice_ms": plan.kernel_slice_ms if accelerated else None,
    }
    return carried(carries, replace(best, model=plan.model, compression=plan.compression, **settings))


def _nothing(plan: Plan, space: PlanSpace) -> Infeasible:
    names = ", ".join(processor.id for processor in space.engine.processors)
    return Infeasible(f"this format carries no plan for {plan.device} that runs on {names}", "choose another format")
