"""CoDL, registered for both memory types; its rule is in `codl_rule`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hetrl.agents.policies.base import HandPolicy, Proposal
from hetrl.plan import Memory

if TYPE_CHECKING:
    from hetrl.device_bridge.surrogate.device import SurrogateDevice


def _propose(device: SurrogateDevice, memory: Memory) -> Proposal:
    from hetrl.agents.policies.codl_rule import codl_schedule

    return Proposal(codl_schedule(device.cost_model(), memory), device.options)


def _codl(memory: Memory) -> HandPolicy:
    return HandPolicy(
        id=f"codl_{memory.value}",
        family="codl",
        granularity="intra_op",
        source="Jia et al., CoDL, MobiSys'22",
        summary=f"each operator split over CPU and GPU, neighbours chained, tensors in OpenCL {memory.value}s; "
        "ignores contention and load",
        units=("cpu", "gpu"),
        propose=lambda device: _propose(device, memory),
        memory=memory,
        splits=True,
    )


codl_buffer = _codl(Memory.BUFFER)
codl_image = _codl(Memory.IMAGE)
