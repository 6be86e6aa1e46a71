"""The best plan that a format can carry, where it cannot carry the one that was found."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from msgspec.structs import replace

from hetrl.agents.exact import exact
from hetrl.agents.paces import paces
from hetrl.compression import Compression
from hetrl.device_bridge.surrogate.compile import plan_of
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.envs.space import Bools, PlanSpace
from hetrl.errors import Infeasible
from hetrl.export.base import Carries, Wish, unit_of
from hetrl.export.claims import carried
from hetrl.export.expected import engine_set
from hetrl.objective import Objective
from hetrl.plan import Axis, MadeBy, Plan


class Expressible(PlanSpace):
    """The plans of a space that a format carries as they are.

    :param without: processors that are not to be used.
    """

    def __init__(self, device: SurrogateDevice, carries: Carries, without: frozenset[str] = frozenset()) -> None:
        super().__init__(device, Objective())
        together = carries.axes if carries.shares_together else frozenset({Axis.NONE})
        takes = np.array([carries.takes(p.id) is None and p.id not in without for p in self.engine.processors])
        axes = np.array([option.axis in together for option in self.options])
        self._carried: Bools = axes & np.array([bool(takes[list(o.processors)].all()) for o in self.options])
        self.branches = self.branches and carries.overlap and not carries.one_processor
        self.windows = self.windows if carries.queue_window else self.windows[:1]
        self.slices_ms = self.slices_ms if carries.kernel_slice else self.slices_ms[:1]
        self.duties = self.duties if carries.caps else self.duties[:1]

    def possible_at(self, compression: Compression) -> Bools:
        """See `PlanSpace.possible_at`."""
        allowed: Bools = super().possible_at(compression) & self._carried
        return allowed


def lowered(wish: Wish, carries: Carries) -> Plan:
    """The fastest plan that a format carries without loss, for the same compression.

    :raises Infeasible: no processor that the format knows takes all operators, or no plan keeps the objective.
    """
    device = SurrogateDevice(wish.spec, wish.graph, engine_set(wish.plan, wish.spec))
    best = _on_one if carries.one_processor else _on_all
    found = [best(wish, Expressible(device, carries, without)) for without in _left_out(device, carries)]
    fastest = min((plan for plan in found if plan is not None), key=lambda pair: pair[0], default=None)
    if fastest is None:
        names = ", ".join(processor.id for processor in device.engine.processors)
        raise nothing(f"this format carries no plan for {wish.plan.device} that runs on {names}", wish.objective)
    return _for(wish, fastest[1], carries)


def nothing(what: str, objective: Objective) -> Infeasible:
    """What to say where there is no plan."""
    rate = objective.max_frame_drop_rate
    if rate is None:
        return Infeasible(what, "choose another format")
    return Infeasible(f"{what}, and drops no more than {100 * rate:g} % of frames", "give a larger --max-frame-drop")


def _left_out(device: SurrogateDevice, carries: Carries) -> Iterator[frozenset[str]]:
    """Sets of processors to do without: of those that are one to the runtime, all but one."""
    alike: dict[str, list[str]] = {}
    for processor in device.engine.processors:
        name = carries.alone.get(unit_of(processor.id))
        if name is not None:
            alike.setdefault(name, []).append(processor.id)
    several = {one for found in alike.values() for one in found}
    for kept in itertools.product(*alike.values()):
        yield frozenset(several - set(kept))


def _on_all(wish: Wish, space: Expressible) -> tuple[float, Plan] | None:
    """The best plan of a space, and its latency in ms."""
    possible = space.possible_at(space.compressions[0])
    found = exact(space, wish.objective, wish.condition) if possible.any(axis=1).all() else None
    if found is None or found.schedule is None:
        return None
    return found.latency_ms, _plan(wish, space, found.schedule)


def _on_one(wish: Wish, space: Expressible) -> tuple[float, Plan] | None:
    """The best processor for the whole model; what it does not take falls back to the CPU, as the runtime has it."""
    possible = space.possible_at(space.compressions[0])
    best: tuple[float, Plan] | None = None
    for option in np.flatnonzero(possible.any(axis=0) & space.single).tolist():
        for memory, pace in itertools.product(space.memories, paces(space, limited=wish.limited)):
            made = _plan(wish, space, pace.schedule((Placed(0, space.groups - 1, option, memory),)))
            measured = space.device.measure(made, wish.condition)
            latency_ms = measured.latency_ms
            if latency_ms is not None and wish.keeps(measured) and (best is None or latency_ms < best[0]):
                best = latency_ms, made
    return best


def _plan(wish: Wish, space: Expressible, schedule: Schedule) -> Plan:
    made_by = MadeBy(method="lowered")
    return plan_of(schedule, space.graph, space.options, space.engine, device=wish.plan.device, made_by=made_by)


def _for(wish: Wish, best: Plan, carries: Carries) -> Plan:
    """The best placement with the given plan's model, and settings as far as the format has words for them.

    They are the given plan's, unless there is a frame limit, for which they were found with the placement.
    """
    plan, used = wish.plan, set(best.processors)
    accelerated = any(unit_of(name) != "cpu" for name in used)
    settings = {
        "caps": tuple(cap for cap in plan.caps if cap.processor in used),
        "process_cap": plan.process_cap,
        "queue_window": plan.queue_window if accelerated else None,
        "kernel_slice_ms": plan.kernel_slice_ms if accelerated else None,
    }
    own = {} if wish.limited else settings
    return carried(carries, replace(best, model=plan.model, compression=plan.compression, **own))
