"""Whether a plan fits a device: the invariants that need its engine set."""

from __future__ import annotations

from msgspec import UNSET

from hetrl.device_bridge.spec import Engine
from hetrl.errors import PlanError
from hetrl.plan import Axis, Plan


def check_engine(plan: Plan, engine: Engine, device: str) -> None:
    """Whether a plan names only what the engine has.

    :raises PlanError: naming the field.
    """
    known = {processor.id: processor for processor in engine.processors}
    pairs = {(link.accelerator, link.host) for link in engine.links}
    for index, segment in enumerate(plan.segments):
        where = f"segments[{index}]"
        for name in segment.processors:
            if name not in known:
                raise PlanError(f"{where}.parts", f"{device} has no processor {name!r}", f"it has {', '.join(known)}")
        *accelerators, host = segment.processors
        several = len(accelerators) > 1 and segment.axis is not Axis.BRANCHES
        if several or any((name, host) not in pairs for name in accelerators):
            can = "; ".join(f"{a} then {h}" for a, h in sorted(pairs))
            raise PlanError(f"{where}.parts", f"{device} cannot split over {', '.join(segment.processors)}", can)
        choices = {m for name in segment.processors for m in known[name].memory}
        if segment.memory is not None and segment.memory not in choices:
            raise PlanError(f"{where}.memory", f"{segment.memory.value!r} is no memory of {segment.processors[0]}")
    for index, cap in enumerate(plan.caps):
        if cap.processor not in known:
            raise PlanError(f"caps[{index}].processor", f"{device} has no processor {cap.processor!r}")
    if plan.process_cap is not UNSET and not engine.on_machine:
        raise PlanError("process_cap", f"{device} has duty cycles alone", "use caps")
