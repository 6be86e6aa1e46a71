"""ncnn (Tencent): the whole model on the CPU, or on the GPU by Vulkan.

`Option::use_vulkan_compute` is off unless an app turns it on (Tencent/ncnn, src/option.cpp), so `ncnn_default` runs
on the CPU. With it on, every layer that has a Vulkan form runs on the GPU and each of the others on the CPU, with
uploads and downloads in between (src/net.cpp). Ignores what those cost, whether a layer is faster on the GPU at all,
the layers' feature mask with which a person could say so, and the screen.
"""

from __future__ import annotations

from hetrl.agents.policies.base import NCNN, HandPolicy
from hetrl.agents.policies.single import whole_model

SOURCE = "Tencent/ncnn"

ncnn_default = HandPolicy(
    id="ncnn_default",
    family="ncnn",
    granularity="single",
    source=SOURCE,
    summary="everything on the CPU's big cores, as by default",
    units=("cpu",),
    propose=lambda device: whole_model(device, "cpu", engine=NCNN),
    runtime=NCNN,
)

ncnn_gpu = HandPolicy(
    id="ncnn_gpu",
    family="ncnn",
    granularity="single",
    source=SOURCE,
    summary="every layer on the GPU that Vulkan has; the others fall back to the CPU, one by one",
    units=("cpu", "gpu"),
    propose=lambda device: whole_model(device, "gpu", engine=NCNN),
    runtime=NCNN,
)
