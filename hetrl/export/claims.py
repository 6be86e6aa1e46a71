"""What a plan holds that a format has no word for, by what the format says that it carries."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET
from msgspec.structs import replace

from hetrl.export.base import Carries, Claims, Limit, unit_of
from hetrl.plan import Axis, Plan


def general_claims(carries: Carries, plan: Plan) -> Claims:
    """Refused is what concerns where operators run and which network it is; the rest is left out."""
    return Claims(tuple(_refused(carries, plan)), tuple(_left_out(carries, plan)))


def carried(carries: Carries, plan: Plan) -> Plan:
    """The plan without what is left out; its memory types stay, since times without them are not known."""
    settings = {
        "caps": plan.caps if carries.caps else (),
        "process_cap": plan.process_cap if carries.process_cap else UNSET,
        "queue_window": plan.queue_window if carries.queue_window else None,
        "kernel_slice_ms": plan.kernel_slice_ms if carries.kernel_slice else None,
        "overlap": plan.overlap and carries.overlap,
    }
    return replace(plan, expected=None, **settings)


def _refused(carries: Carries, plan: Plan) -> Iterator[Limit]:
    if plan.stretched:
        yield Limit("segments", "branches make another network, which must be trained first")
    if plan.compression.changes and not carries.compression:
        yield Limit("compression", "the format describes the original model, it holds no compressed one")
    if carries.one_processor and len(plan.processors) > 1:
        names = ", ".join(plan.processors)
        yield Limit("segments", f"the whole model is on one processor, and the plan uses {names}")
    for name in dict.fromkeys(carries.alone.values()):
        found = [processor for processor in plan.processors if carries.alone.get(unit_of(processor)) == name]
        if len(found) > 1:
            yield Limit("segments", f"there is one {name}, and the plan uses {' and '.join(found)}")
    for number, segment in enumerate(plan.segments):
        if segment.axis not in carries.axes and segment.axis is not Axis.BRANCHES:
            yield Limit(f"segments[{number}].axis", f"an operator cannot be shared along {segment.axis.value}")
    for processor in plan.processors:
        reason = carries.takes(processor)
        if reason is not None:
            number = next(n for n, segment in enumerate(plan.segments) if processor in segment.processors)
            yield Limit(f"segments[{number}].parts", f"{processor}: {reason}")


def _left_out(carries: Carries, plan: Plan) -> Iterator[Limit]:
    if plan.splits and not carries.shares_together and carries.axes > {Axis.NONE}:
        count = f"{plan.splits} shared segment" + "s" * (plan.splits > 1)
        yield Limit("segments", f"the parts of {count} run one after the other, in one net")
    if plan.overlap and not carries.overlap:
        yield Limit("overlap", "independent branches run one after the other")
    if plan.caps and not carries.caps:
        yield Limit("caps", "processors do not idle between segments")
    if plan.process_cap is not UNSET and not carries.process_cap:
        yield Limit("process_cap", "priority and CPU quota are the app's to set")
    if plan.queue_window is not None and not carries.queue_window:
        yield Limit("queue_window", "the runtime bounds no queue of GPU commands")
    if plan.kernel_slice_ms is not None and not carries.kernel_slice:
        yield Limit("kernel_slice_ms", "the runtime cuts no GPU kernels")
    chosen = dict.fromkeys(segment.memory.value for segment in plan.segments if segment.memory is not None)
    if chosen and not carries.memory:
        yield Limit("segments.memory", f"the runtime chooses the memory type itself, not {' and '.join(chosen)}")
