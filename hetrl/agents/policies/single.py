"""A whole model in one placement: what a runtime does that is told to use one processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hetrl.agents.policies.base import Proposal
from hetrl.plan import Memory

if TYPE_CHECKING:
    from hetrl.device_bridge.surrogate.device import SurrogateDevice


def whole_model(
    device: SurrogateDevice, unit: str, memory: Memory = Memory.BUFFER, engine: str | None = None
) -> Proposal:
    """Everything on the first processor of a unit; what it does not take falls back to the CPU, one by one.

    :param engine: the runtime, where the engine set has several; fp32 comes first in such sets.
    """
    from hetrl.device_bridge.surrogate.schedule import Placed, Schedule

    processors = device.engine.processors
    processor = next(i for i, p in enumerate(processors) if p.unit == unit and engine in (None, p.engine))
    last = len(device.graph.groups) - 1
    return Proposal(Schedule((Placed(0, last, processor, memory),)), device.options)
