"""Which initializers of a graph are weights that training may change, by what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from hetrl.graph.wiring import ordered_nodes

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_VIEWS = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Flatten"})
# Positions of weights among the inputs.
_WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "Einsum": (0, 1, 2),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
}
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
WEIGHT_READERS = frozenset({*_WEIGHTS, *_VIEWS, "Add", "Mul", "Gather"})
_STATISTICS = (3, 4)  # mean and variance of a BatchNormalization


def trainable_weights(model: onnx.ModelProto) -> frozenset[str]:
    """Weights and biases of products and normalizations, slopes, and vectors that are added or multiplied between them.

    Left as they are: scalars, what is applied to the input before the first product (its mean and deviation) or to the
    result of the last one other than as its bias, masks of two values, and whatever is not read by the operators above.
    """
    nodes = ordered_nodes(model.graph, "the model")
    floats = {t.name: t for t in model.graph.initializer if t.data_type in FLOATS}
    roots = _roots(nodes, floats)
    behind, before, products = _behind(nodes), _before(nodes), _results(nodes)
    found: set[str] = set()
    for node in nodes:
        for position, name in enumerate(node.input):
            root = roots.get(name)
            if root is None or root in found:
                continue
            if position in _WEIGHTS.get(node.op_type, ()) or (node.op_type == "Gather" and _is_table(node, roots)):
                found.add(root)
            elif node.op_type in ("Add", "Mul") and _is_vector(floats[root]):
                other = node.input[1 - position]
                bias = node.op_type == "Add" and other in products
                if other in behind and (bias or node.output[0] in before):
                    found.add(root)
    return frozenset(found - running_statistics(model))


def running_statistics(model: onnx.ModelProto) -> frozenset[str]:
    """Initializers that are means or variances of BatchNormalization."""
    nodes = ordered_nodes(model.graph, "the model")
    roots = _roots(nodes, {tensor.name: tensor for tensor in model.graph.initializer})
    norms = (node for node in nodes if node.op_type == "BatchNormalization")
    return frozenset(roots[n.input[p]] for n in norms for p in _STATISTICS if n.input[p] in roots)


def has_norms(model: onnx.ModelProto) -> bool:
    """Whether the network normalizes activations: without, it only bears small steps."""
    return any(node.op_type.endswith("Normalization") for node in model.graph.node)


def ends_in_softmax(model: onnx.ModelProto) -> bool:
    """Whether the first output is of probabilities."""
    makers = {output: node for node in model.graph.node for output in node.output}
    node = makers.get(model.graph.output[0].name)
    while node is not None and node.op_type in _VIEWS:
        node = makers.get(node.input[0])
    return node is not None and node.op_type == "Softmax"


def _roots(nodes: Sequence[onnx.NodeProto], initializers: Mapping[str, TensorProto]) -> dict[str, str]:
    """The initializer that a tensor is, or is a view of."""
    roots = {name: name for name in initializers}
    for node in nodes:
        if node.op_type in _VIEWS and node.input and node.input[0] in roots:
            roots[node.output[0]] = roots[node.input[0]]
    return roots


def _behind(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Tensors that depend on a product."""
    behind: set[str] = set()
    for node in nodes:
        if node.op_type in _PRODUCTS or any(name in behind for name in node.input):
            behind.update(node.output)
    return behind


def _before(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Tensors that a product or a normalization depends on."""
    before: set[str] = set()
    for node in reversed(nodes):
        if node.op_type in _WEIGHTS or any(name in before for name in node.output):
            before.update(node.input)
    return before


def _results(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes if node.op_type in _PRODUCTS for name in node.output}


def _is_table(node: onnx.NodeProto, roots: Mapping[str, str]) -> bool:
    """Rows looked up by what the graph computes or is given."""
    return node.input[0] in roots and node.input[1] not in roots


def _is_vector(tensor: TensorProto) -> bool:
    """More than a scalar, and no mask."""
    values = numpy_helper.to_array(tensor)
    if values.size < 2:
        return False
    mask = values.ndim > 1 and len(np.unique(values)) == 2 and bool((values == 0).any())
    return not mask
