"""Constants that stay narrow: what a DequantizeLinear makes of stored integers is not folded.

A runtime that finds the operator may calculate in int8, and the weights take a quarter; what is folded is float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx
from onnx import TensorProto

from hetrl.graph.declared import attributes
from hetrl.graph.single import plain_domain

_WHOLE_BYTES = frozenset(
    {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32}
)  # of which parts can be cut
_DENSE = ("MatMul", "Gemm")


def recipes_of(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    """The DequantizeLinear by the name of what it makes, of those that all who read it can read as it is.

    :param nodes: the readers.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        values = [given.t for given in node.attribute if given.name == "value"]
        if node.op_type == "Constant" and values:
            stored[node.output[0]] = values[0]
    found = {
        node.output[0]: node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and plain_domain(node.domain) == "" and _plain(node, stored)
    }
    for reader in nodes:
        for position, name in enumerate(reader.input):
            if name in found and not _suits(found[name], reader, position, stored):
                del found[name]
    return found


def _plain(node: onnx.NodeProto, stored: dict[str, TensorProto]) -> bool:
    """Of stored integers of whole bytes, without a scale for each block, whose parts need not be whole blocks."""
    given = attributes(node)
    kept = all(name in stored for name in node.input if name)
    other = given.integer("block_size", 0) or given.integer("output_dtype", 0)
    return kept and not other and stored[node.input[0]].data_type in _WHOLE_BYTES


def _suits(node: onnx.NodeProto, reader: onnx.NodeProto, position: int, stored: dict[str, TensorProto]) -> bool:
    """OpenVINO is wrong where a dense layer's scales are not by its outputs (2026.4: off by 0.7 of the largest)."""
    if reader.op_type not in _DENSE or position > 1 or math.prod(stored[node.input[1]].dims) == 1:
        return True
    rank = len(stored[node.input[0]].dims)
    outputs = rank - 1
    if reader.op_type == "Gemm" and attributes(reader).integer("transB", 0):
        outputs = 0
    return position == 1 and attributes(node).integer("axis", 1) % rank == outputs
