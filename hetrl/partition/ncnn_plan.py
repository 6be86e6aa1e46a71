"""A plan as one ncnn model: every layer says whether it stays on the CPU.

That is how a phone's own `benchncnn`, or an app, runs a plan: ncnn moves tensors between the processors by itself.
"""

from __future__ import annotations

import onnx

from hetrl.device_bridge.adb.benchncnn import NcnnModel
from hetrl.errors import PlanError
from hetrl.graph import OperatorGraph
from hetrl.partition.ncnn import to_layers
from hetrl.partition.ncnn_layer import NO_VULKAN, Layer, Unconvertible, param_text
from hetrl.plan import Plan
from hetrl.plan_check import check_plan

NO_FP16 = 1 | 2  # neither arithmetic nor storage
ENGINE = "ncnn"
IMAGE_RANK = 3  # width, height, channels


def plan_param(model: onnx.ModelProto, plan: Plan, graph: OperatorGraph) -> NcnnModel:
    """The whole model with a mask at each layer, under the tensor names of the ONNX file.

    Layers on a processor other than a GPU keep off Vulkan; layers in fp32 keep off fp16, which ncnn would use.

    :param model: may be without weights, which the `.param` file does not hold.
    :raises PlanError: the plan does what one ncnn model cannot: splits, pruning, another engine.
    :raises Unconvertible: ncnn has no layer for an operator, or the model has not exactly one input, an image.
    """
    check_plan(plan, graph)
    masks = _masks(plan)
    layers = to_layers(model, None, {tensor.name: tensor.shape for tensor in graph.tensors})
    inputs = [layer for layer in layers if layer.type == "Input"]
    if len(inputs) != 1 or len(inputs[0].params) != IMAGE_RANK:
        raise Unconvertible(inputs[-1].name if inputs else graph.name, "the model's input is not one image")
    shape = inputs[0].params
    given = [_mask(layer, masks) for layer in layers]
    uses_gpu = any(not mask & NO_VULKAN for mask in masks.values())
    return NcnnModel(param_text(layers, given), (_size(shape[0]), _size(shape[1]), _size(shape[2])), uses_gpu)


def _masks(plan: Plan) -> dict[str, int]:
    """Mask of each operator."""
    if plan.compression.changes:
        raise PlanError("compression", "a compressed model is another one than the file", "measure it as it is")
    if plan.capped:
        raise PlanError("caps", "ncnn has no caps between layers", "leave them away")
    found: dict[str, int] = {}
    for number, segment in enumerate(plan.segments):
        if len(segment.parts) > 1:
            raise PlanError(
                f"segments[{number}].parts", "one ncnn model cannot share an operator", "place it as a whole"
            )
        unit, engine, precision = segment.processors[0].split("/")
        if engine != ENGINE:
            raise PlanError(f"segments[{number}].parts", f"{engine!r} is not ncnn", "plan with --engine ncnn")
        mask = (0 if unit.startswith("gpu") else NO_VULKAN) | (NO_FP16 if precision == "fp32" else 0)
        found.update(dict.fromkeys(segment.nodes, mask))
    return found


def _mask(layer: Layer, masks: dict[str, int]) -> int:
    """A layer that does several operators is of one fusion group; the last decides where it is not."""
    known = [masks[node] for node in layer.nodes if node in masks]
    return known[-1] if known else 0


def _size(value: object) -> int:
    assert isinstance(value, int)
    return value
