"""MACE (Xiaomi, 2017): the whole model on one processor, in one memory type.

Operators that the GPU does not take fall back to the CPU, one by one. Ignores every other processor, what falling
back costs, and the screen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hetrl.agents.policies.base import HandPolicy, Proposal
from hetrl.plan import Memory

if TYPE_CHECKING:
    from hetrl.device_bridge.surrogate.device import SurrogateDevice

SOURCE = "XiaoMi/mace, 2017"


def _whole(device: SurrogateDevice, unit: str, memory: Memory) -> Proposal:
    from hetrl.device_bridge.surrogate.schedule import Placed, Schedule

    processor = [p.unit for p in device.engine.processors].index(unit)
    last = len(device.graph.groups) - 1
    return Proposal(Schedule((Placed(0, last, processor, memory),)), device.options)


mace_cpu = HandPolicy(
    id="mace_cpu",
    family="mace",
    granularity="single",
    source=SOURCE,
    summary="everything on the CPU's big cores",
    units=("cpu",),
    propose=lambda device: _whole(device, "cpu", Memory.BUFFER),
)


def _gpu(memory: Memory) -> HandPolicy:
    return HandPolicy(
        id=f"mace_gpu_{memory.value}",
        family="mace",
        granularity="single",
        source=SOURCE,
        summary=f"everything on the GPU, tensors in OpenCL {memory.value}s; the rest falls back to the CPU",
        units=("cpu", "gpu"),
        propose=lambda device: _whole(device, "gpu", memory),
        memory=memory,
    )


mace_gpu_buffer = _gpu(Memory.BUFFER)
mace_gpu_image = _gpu(Memory.IMAGE)
