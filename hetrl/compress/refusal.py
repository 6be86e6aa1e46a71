"""Models that are not compressed: those that still train, and those that are int8 already."""

from __future__ import annotations

import onnx

from hetrl.errors import ModelError
from hetrl.graph.single import plain_domain
from hetrl.graph.wiring import label, reads

_QUANTIZED = frozenset(
    "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul ConvInteger MatMulInteger".split()
)


def refuse(model: onnx.ModelProto, where: str) -> None:
    """Look for operators that compression would break.

    :param where: the model's name, for messages.
    :raises ModelError: a BatchNormalization in training mode, or operators on integers.
    """
    needed = {name for node in model.graph.node for name in reads(node)}
    needed |= {output.name for output in model.graph.output}
    for node in model.graph.node:
        standard = not plain_domain(node.domain)
        if standard and node.op_type == "BatchNormalization" and _trains(node, needed):
            raise ModelError(
                f"{where}: the operator {label(node)} is in training mode", "export the model in evaluation mode"
            )
        if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear"):
            raise ModelError(
                f"{where} is quantized already, see {label(node)}", "compress the float32 model that it was made of"
            )


def _trains(node: onnx.NodeProto, needed: set[str]) -> bool:
    """By its attribute, or, before opset 14, by asking for the statistics of the batch."""
    return any(a.name == "training_mode" and a.i for a in node.attribute) or not needed.isdisjoint(
        name for name in node.output[1:] if name
    )
