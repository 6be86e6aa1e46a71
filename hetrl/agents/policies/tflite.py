"""TensorFlow Lite (LiteRT), registered for each of its delegates; the rule is in `tflite_rule`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hetrl.agents.policies.base import TFLITE, HandPolicy, Proposal
from hetrl.agents.policies.single import whole_model

if TYPE_CHECKING:
    from hetrl.device_bridge.surrogate.device import SurrogateDevice

SOURCE = "google-ai-edge/LiteRT"

tflite_cpu = HandPolicy(
    id="tflite_cpu",
    family="tflite",
    granularity="single",
    source=SOURCE,
    summary="everything on the CPU's big cores (XNNPACK), as by default",
    units=("cpu",),
    propose=lambda device: whole_model(device, "cpu"),
    runtime=TFLITE,
)


def _propose(device: SurrogateDevice, unit: str) -> Proposal:
    from hetrl.agents.policies.tflite_rule import delegate_schedule

    return Proposal(delegate_schedule(device.cost_model().tables, unit), device.options)


def _delegate(unit: str, name: str) -> HandPolicy:
    return HandPolicy(
        id=f"tflite_{unit}",
        family="tflite",
        granularity="subgraph",
        source=SOURCE,
        summary=f"the longest run of operators that {name} takes goes there, all others to the CPU; ignores how much "
        "work is in a run and what leaving it costs",
        units=("cpu", unit),
        propose=lambda device: _propose(device, unit),
        runtime=TFLITE,
    )


tflite_gpu = _delegate("gpu", "the GPU delegate")
tflite_dsp = _delegate("dsp", "the DSP's delegate (int8)")
tflite_npu = _delegate("npu", "the NPU's delegate")
