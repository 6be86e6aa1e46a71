"""ONNX Runtime's and OpenVINO's default partitionings, registered; their rule is in `priority_rule`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hetrl.agents.policies.base import HandPolicy, Proposal

if TYPE_CHECKING:
    from hetrl.device_bridge.surrogate.device import SurrogateDevice


def _propose(device: SurrogateDevice) -> Proposal:
    from hetrl.agents.policies.priority_rule import greedy_schedule

    return Proposal(greedy_schedule(device.cost_model().tables), device.options)


ort_greedy = HandPolicy(
    id="ort_greedy",
    family="ort",
    granularity="subgraph",
    source="microsoft/onnxruntime",
    summary="each execution provider, accelerators first, claims all operators that it takes; ignores all costs",
    units=("cpu",),
    propose=_propose,
)

openvino_hetero = HandPolicy(
    id="openvino_hetero",
    family="openvino",
    granularity="subgraph",
    source="openvinotoolkit/openvino, HETERO plugin",
    summary="each device in order of priority takes all operators that it can, in submodels; ignores all costs",
    units=("cpu",),
    propose=_propose,
)
