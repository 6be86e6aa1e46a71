"""MACE (Xiaomi, 2017): the whole model on one processor, in one memory type.

Operators that the GPU does not take fall back to the CPU, one by one. On a Hexagon DSP the whole network runs quantized
to int8 through Qualcomm's hexagon-nn (`runtime: dsp` in MACE's model files), and what that does not take on the CPU.
Ignores every other processor, what falling back costs, and the screen, unless an option says otherwise: the GPU
policies take `slice_ms` and `queue_window`, the CPU's and the DSP's have no OpenCL queue (`options`).
"""

from __future__ import annotations

from hetrl.agents.policies.base import MACE, HandPolicy
from hetrl.agents.policies.options import NAMES
from hetrl.agents.policies.single import whole_model
from hetrl.plan import Memory

SOURCE = "XiaoMi/mace, 2017"


mace_cpu = HandPolicy(
    id="mace_cpu",
    family="mace",
    granularity="single",
    source=SOURCE,
    summary="everything on the CPU's big cores",
    units=("cpu",),
    propose=lambda device: whole_model(device, "cpu"),
    runtime=MACE,
)


def _gpu(memory: Memory) -> HandPolicy:
    return HandPolicy(
        id=f"mace_gpu_{memory.value}",
        family="mace",
        granularity="single",
        source=SOURCE,
        summary=f"everything on the GPU, tensors in OpenCL {memory.value}s; the rest falls back to the CPU",
        units=("cpu", "gpu"),
        propose=lambda device: whole_model(device, "gpu", memory),
        memory=memory,
        runtime=MACE,
        options=NAMES,
    )


mace_gpu_buffer = _gpu(Memory.BUFFER)
mace_gpu_image = _gpu(Memory.IMAGE)

mace_dsp = HandPolicy(
    id="mace_dsp",
    family="mace",
    granularity="single",
    source=SOURCE,
    summary="everything on the DSP in int8, by hexagon-nn; the rest falls back to the CPU",
    units=("cpu", "dsp"),
    propose=lambda device: whole_model(device, "dsp"),
    runtime=MACE,
)
