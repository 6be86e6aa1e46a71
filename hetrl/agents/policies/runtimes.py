"""What runtimes do on a computer's CPU if nobody tells them anything: the whole model, in fp32, on all cores.

ONNX Runtime's session options (`intra_op_num_threads` 0: a thread for each core, docs/performance/tune-performance/
threading.md of microsoft/onnxruntime) and OpenVINO's CPU plugin (`inference_num_threads`: all; with the hint f32, since
its own default is bf16 where the CPU has that, which changes outputs). Ignores that another runtime may be faster at
some operators.
"""

from __future__ import annotations

from hetrl.agents.policies.base import OPENVINO, ORT, HandPolicy
from hetrl.agents.policies.single import whole_model

onnxruntime_default = HandPolicy(
    id="onnxruntime_default",
    family="ONNX Runtime",
    granularity="single",
    source="microsoft/onnxruntime",
    summary="everything in ONNX Runtime on all cores, as by default",
    units=("cpu",),
    propose=lambda device: whole_model(device, "cpu", engine=ORT),
    runtime=ORT,
)

openvino_default = HandPolicy(
    id="openvino_default",
    family="OpenVINO",
    granularity="single",
    source="openvinotoolkit/openvino",
    summary="everything in OpenVINO on all cores, in fp32",
    units=("cpu",),
    propose=lambda device: whole_model(device, "cpu", engine=OPENVINO),
    runtime=OPENVINO,
)
