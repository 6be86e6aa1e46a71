"""Results of a node that reads nothing but constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from hetrl.errors import ModelError
from hetrl.graph.declared import attributes
from hetrl.graph.single import Array, run_reference
from hetrl.graph.wiring import label, reads

_LEAST_IR = 4  # before it, every initializer had to be an input as well


def constant_results(
    node: onnx.NodeProto,
    inputs: Mapping[str, Array],
    opsets: Sequence[onnx.OperatorSetIdProto],
    ir_version: int = _LEAST_IR,
) -> dict[str, Array]:
    """By name of output.

    :param inputs: all that the node reads, by name.
    :raises ModelError: they cannot be computed.
    """
    try:
        if node.op_type == "DequantizeLinear":  # the reference implementation has its latest versions only
            results = [dequantized(node, [inputs[name] for name in node.input if name])]
        else:
            results = _run(node, inputs, opsets, ir_version)
    except Exception as error:  # the reference implementation raises anything
        raise ModelError(f"the constant {label(node)} cannot be computed: {error}") from error
    return dict(zip([name for name in node.output if name], results, strict=False))


def dequantized(node: onnx.NodeProto, values: Sequence[Array]) -> Array:
    """What DequantizeLinear makes of narrow numbers, a scale and (if given) a zero point.

    One scale is for all, a vector has one for each index of `axis`, and more axes have one for each block along it.
    Source: https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
    """
    narrow, scale, *zero = values
    factors = [scale, *zero]
    if scale.size > 1 and scale.ndim == 1:
        axis = attributes(node).integer("axis", 1) % narrow.ndim
        factors = [f.reshape(-1, *(1,) * (narrow.ndim - axis - 1)) for f in factors]
    elif scale.size > 1:
        axis = attributes(node).integer("axis", 1) % narrow.ndim
        factors = [f.repeat(-(-narrow.shape[axis] // f.shape[axis]), axis) for f in factors]
        factors = [np.take(f, range(narrow.shape[axis]), axis) for f in factors]  # the last block can be short
    shift = factors[1].astype(np.float32) if zero else np.float32(0)
    real = (narrow.astype(np.float32) - shift) * factors[0].astype(np.float32)
    return np.asarray(real.astype(scale.dtype))


def _run(
    node: onnx.NodeProto, inputs: Mapping[str, Array], opsets: Sequence[onnx.OperatorSetIdProto], ir_version: int
) -> list[Array]:
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(inputs[name].dtype), inputs[name].shape)
        for name in dict.fromkeys(reads(node))
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "one", infos, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=max(ir_version, _LEAST_IR))
    return run_reference(model, inputs)
