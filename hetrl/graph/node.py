"""An operator with its geometry and costs: what the graph's nodes are made of."""

from __future__ import annotations

from hetrl.graph.flops import flops, macs
from hetrl.graph.geometry import geometry
from hetrl.graph.kinds import weight_elements
from hetrl.graph.model import Node
from hetrl.graph.operator import Operator


def node_of(operator: Operator, signature: str | None = None) -> Node:
    """The node of an operator whose shapes are all known.

    :param signature: another operator's, where it stands for that one.
    """
    shape = geometry(operator)
    count = macs(operator, shape)
    return Node(
        id=operator.id,
        op_type=operator.op_type,
        domain=operator.domain,
        inputs=tuple(operand.name for operand in operator.activations),
        outputs=tuple(result.name for result in operator.results),
        geometry=shape,
        macs=count,
        flops=flops(operator, count),
        input_bytes=sum(operand.bytes for operand in operator.activations),
        output_bytes=sum(result.bytes for result in operator.results),
        weight_bytes=sum(operand.stored_bytes for operand in operator.constants),
        weight_elements=weight_elements(operator.op_type, operator.kind, operator.constants),
        signature=signature or operator.signature,
    )
