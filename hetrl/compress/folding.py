"""What a model computes from its weights alone, computed: constants as initializers, BatchNormalization in weights.

The quantizer of ONNX Runtime looks for weights and biases among the initializers, and int8 kernels take no operator
between a convolution and the quantization of its result.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from hetrl.compress.cleanup import drop_unread, fresh, tensor_names
from hetrl.compress.stored import Stock
from hetrl.graph.single import plain_domain
from hetrl.graph.wiring import reads

_INTO = frozenset({"Conv", "ConvTranspose", "Gemm"})
_EPSILON = 1e-5  # ONNX's default
_OPTIONAL_BIAS = 11  # the opset from which a Gemm needs no bias
Floats = NDArray[np.float64]


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with fewer operators; a convolution gives its result the name of the normalization's."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _constants_to_initializers(result)
    _fold_norms(result)
    drop_unread(result)
    return result


def _constants_to_initializers(model: onnx.ModelProto) -> None:
    constants = Stock(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    outputs = {output.name for output in model.graph.output}
    alias: dict[str, str] = {}
    for node in model.graph.node:
        found = constants.find(node.output[0]) if node.output else None
        if found is None or node.output[0] in outputs:
            continue
        if not found.turned and (found.name in stored or found.name != node.output[0]):
            alias[node.output[0]] = found.name
            continue
        alias[node.output[0]] = fresh(f"{node.output[0]}.constant", stored)
        tensor = numpy_helper.from_array(np.asarray(found.array(), order="C"), alias[node.output[0]])
        model.graph.initializer.append(tensor)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = _root(alias, name)


def _root(alias: dict[str, str], name: str) -> str:
    while name in alias:
        name = alias[name]
    return name


def _fold_norms(model: onnx.ModelProto) -> None:
    graph = model.graph
    opset = next((o.version for o in model.opset_import if not plain_domain(o.domain)), 0)
    maker = {name: node for node in graph.node for name in node.output if name}
    readers = Counter(name for node in graph.node for name in reads(node))
    readers.update(output.name for output in graph.output)
    taken = tensor_names(model)
    for norm in graph.node:
        if norm.op_type != "BatchNormalization" or plain_domain(norm.domain):
            continue
        node = maker.get(norm.input[0])
        if node is None or readers[norm.input[0]] != 1 or node.op_type not in _INTO or plain_domain(node.domain):
            continue
        without_bias = len(node.input) < 3 or not node.input[2]
        if without_bias and node.op_type == "Gemm" and opset < _OPTIONAL_BIAS:
            continue
        if any(a.name in ("alpha", "beta") and a.f != 1.0 for a in node.attribute):
            continue
        new = _weights(node, norm, Stock(model))
        if new is None:
            continue
        names = [fresh(f"{name}.folded", taken) for name in (node.input[1], norm.output[0] + ".bias")]
        graph.initializer.extend(numpy_helper.from_array(array, name) for array, name in zip(new, names, strict=True))
        data, result = node.input[0], norm.output[0]
        norm.output[0] = fresh(f"{result}.unfolded", taken)  # read by nobody
        node.input[:] = [data, *names]
        node.output[0] = result
        maker[result] = node


def _weights(
    node: onnx.NodeProto, norm: onnx.NodeProto, constants: Stock
) -> tuple[NDArray[np.generic], NDArray[np.generic]] | None:
    """Weights and bias of the operator with the normalization behind it; None where a number is not known."""
    names = [node.input[1], *norm.input[1:5], *(name for name in node.input[2:3] if name)]
    found = [constants.find(name) for name in names]
    known = [one.array() for one in found if one is not None]
    if len(known) < len(names) or known[0].dtype.kind != "f":
        return None
    weight, scale, shift, mean, variance = (np.asarray(array, np.float64) for array in known[:5])
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), _EPSILON)
    factor = scale / np.sqrt(variance + epsilon)
    bias = np.asarray(known[5], np.float64).reshape(-1) if len(known) > 5 else np.zeros_like(mean)
    if bias.size not in (1, mean.size):
        return None
    dtype = known[0].dtype
    return _scaled(node, weight, factor).astype(dtype), ((bias - mean) * factor + shift).astype(dtype)


def _scaled(node: onnx.NodeProto, weight: Floats, factor: Floats) -> Floats:
    """The weights with every output channel multiplied by its factor."""
    integers = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Gemm":
        return weight * (factor[:, None] if integers.get("transB", 0) else factor)
    if node.op_type == "Conv":
        return weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
    groups, (depth, columns, *window) = integers.get("group", 1), weight.shape
    parts = weight.reshape(groups, depth // groups, columns, math.prod(window))
    return (parts * factor.reshape(groups, 1, columns, 1)).reshape(weight.shape)
