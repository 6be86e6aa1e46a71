"""The operators that CoDL shares between CPU and GPU, in the order in which its engine runs them.

CoDL's converter is MACE's (csu-eis/CoDL, codl-mobile/tools/python/transform/onnx_converter.py and transformer.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hetrl.graph import OperatorGraph
from hetrl.graph.operator import Operator

Kind = Literal["Conv2D", "Deconv2D", "FullyConnected"]
_ACTIVATIONS = frozenset({"Relu", "Clip", "PRelu", "LeakyRelu", "Tanh", "Sigmoid", "Elu", "HardSigmoid"})


@dataclass(frozen=True)
class Shared:
    """An operator that reads a number of each of CoDL's files; `rows` and `channels` are its output's."""

    node: str
    kind: Kind
    rows: int
    channels: int


def shared_operators(graph: OperatorGraph) -> tuple[Shared, ...]:
    """All of them, in CoDL's order."""
    kinds = _kinds(graph)
    return tuple(
        Shared(node.id, kinds[node.id], node.geometry.out_h, node.geometry.out_channels)
        for node in (graph.nodes[index] for index in execution_order(graph))
        if node.id in kinds
    )


def execution_order(graph: OperatorGraph) -> tuple[int, ...]:
    """Indices of the nodes that the outputs need: depth first from the outputs, operands in order, each once."""
    maker = {tensor: index for index, node in enumerate(graph.nodes) for tensor in node.outputs}
    order: list[int] = []
    seen: set[int] = set()
    for output in graph.outputs:
        open_nodes = [(maker[output], False)] if output in maker else []
        while open_nodes:
            index, operands_done = open_nodes.pop()
            if operands_done:
                order.append(index)
            elif index not in seen:
                seen.add(index)
                open_nodes.append((index, True))
                open_nodes += [(maker[t], False) for t in reversed(graph.nodes[index].inputs) if t in maker]
    return tuple(order)


def _kinds(graph: OperatorGraph) -> dict[str, Kind]:
    """What the converter makes of the nodes, by id, where it is one of the three."""
    kinds: dict[str, Kind] = {}
    makers = {result.name: operator for operator in graph.operators for result in operator.results}
    for node, operator in zip(graph.nodes, graph.operators, strict=True):
        image = len(operator.out.shape) == 4
        if node.op_type == "Conv" and image and node.geometry.groups == 1:
            kinds[node.id] = "Conv2D"
        elif node.op_type == "ConvTranspose" and image and node.geometry.groups == 1:
            kinds[node.id] = "Deconv2D"
        elif node.op_type == "Gemm" and _is_dense(operator, makers, kinds):
            kinds[node.id] = "FullyConnected"
    return kinds


def _is_dense(operator: Operator, makers: dict[str, Operator], kinds: dict[str, Kind]) -> bool:
    """Whether a Gemm becomes a FullyConnected: behind a Reshape of an image, or behind another one."""
    weight, attributes = operator.operand(1), operator.attributes
    usual = attributes.integer("transA", 0) == 0 and attributes.integer("transB", 0) == 1
    if not usual or weight is None or not weight.constant:
        return False
    source = makers.get(operator.activations[0].name)
    while source is not None and source.op_type in _ACTIVATIONS:
        source = makers.get(source.activations[0].name)
    if source is None:
        return False
    if source.op_type != "Reshape":
        return kinds.get(source.id) == "FullyConnected"
    shape = source.operand(1)
    return len(source.activations[0].shape) == 4 and shape is not None and shape.constant
