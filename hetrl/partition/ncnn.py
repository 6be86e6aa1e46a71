"""Small ONNX models to ncnn's `.param` and `.bin`, under the same tensor names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hetrl.device_bridge.runner.engines.ncnn import blob_name
from hetrl.graph import Node
from hetrl.graph.constant_node import dequantized
from hetrl.partition import ncnn_moves as moves
from hetrl.partition import ncnn_windows as windows
from hetrl.partition.ncnn_fuse import fuse
from hetrl.partition.ncnn_layer import Array, Layer, Unconvertible, param_text, with_splits
from hetrl.partition.ncnn_scope import Scope, Shape, shape_params

__all__ = ["NcnnFiles", "Unconvertible", "has_layer", "to_layers", "to_ncnn"]

_OPERATORS: Mapping[str, Callable[[Scope], list[Layer]]] = {
    "Conv": windows.conv,
    "ConvTranspose": windows.conv_transpose,
    "Gemm": windows.gemm,
    "MatMul": windows.matmul,
    "MaxPool": windows.pool,
    "AveragePool": windows.pool,
    "GlobalAveragePool": windows.global_pool,
    "GlobalMaxPool": windows.global_pool,
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"), windows.reduce),
    "BatchNormalization": windows.batch_norm,
    "InstanceNormalization": windows.instance_norm,
    "GroupNormalization": windows.group_norm,
    "LayerNormalization": windows.layer_norm,
    "LRN": windows.local_response_norm,
    **dict.fromkeys(moves.BINARY, moves.binary),
    **dict.fromkeys(moves.UNARY, moves.unary),
    **dict.fromkeys(
        ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Softplus", "Mish", "Erf", "Gelu", "HardSigmoid", "HardSwish"),
        moves.activation,
    ),
    "Pow": moves.power,
    "Clip": moves.clip,
    "PRelu": moves.prelu,
    "Softmax": moves.softmax,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"), moves.view),
    "Transpose": moves.transpose,
    "Concat": moves.concat,
    "Slice": moves.crop,
    "Gather": moves.gather,
    "Split": moves.split,
    "Resize": moves.resize,
    "Pad": moves.pad,
    "DepthToSpace": moves.depth_to_space,
    "SpaceToDepth": moves.space_to_depth,
}


@dataclass(frozen=True)
class NcnnFiles:
    """What ncnn reads. Blobs are named as `blob_name` names the model's tensors.

    :param param: for `Net.load_param`.
    :param weights: those of each layer that has any; models that have layers in common have these in common.
    """

    param: str
    weights: tuple[bytes, ...]

    @property
    def bin(self) -> bytes:
        """For `Net.load_model`."""
        return b"".join(self.weights)


def has_layer(node: Node) -> bool:
    """Whether operators of this type can be converted; a converter may refuse one all the same."""
    return node.op_type in _OPERATORS and node.domain in ("", "ai.onnx")


def to_ncnn(model: onnx.ModelProto, weights: Mapping[str, Array] | None = None) -> NcnnFiles:
    """Convert a model of float32 tensors with a batch of 1.

    :param weights: values of initializers that the model names without holding them (external data).
    :raises Unconvertible: ncnn has no layer for an operator, its attributes, or its shapes.
    """
    layers = to_layers(model, weights or {})
    return NcnnFiles(param_text(layers), tuple(layer.encode_weights() for layer in layers if layer.weights))


def to_layers(
    model: onnx.ModelProto, weights: Mapping[str, Array] | None, shapes: Mapping[str, Shape] | None = None
) -> list[Layer]:
    """The layers of a model; what its outputs do not depend on is left out.

    :param weights: as for `to_ncnn`; None: initializers without values are zeros, where nobody asks for weights.
    :param shapes: of tensors, where they are known better than the model says.
    :raises Unconvertible: see `to_ncnn`.
    """
    graph = model.graph
    constants = _constants(graph, weights)
    known = _shapes(model) | {name: tuple(value.shape) for name, value in constants.items()} | dict(shapes or {})
    opset = next((i.version for i in model.opset_import if i.domain in ("", "ai.onnx")), 0)
    inputs = [value for value in graph.input if value.name not in constants]
    outputs = [value.name for value in graph.output]
    for value in inputs:
        if value.name in outputs:
            raise Unconvertible(value.name, "an input that is an output as well")
    wanted = set(outputs)
    groups: list[list[Layer]] = []
    for node in reversed(graph.node):
        if wanted.isdisjoint(node.output) or node.output[0] in constants:
            continue
        scope = Scope(node, known, constants, opset)
        convert = _OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if convert is None:
            raise scope.refuse("there is no such layer")
        made = convert(scope)
        reads = {blob for layer in made for blob in layer.reads}
        wanted |= {name for name in node.input if name and blob_name(name) in reads}
        groups.append(made)
    sources = [_input(value, known) for value in inputs]
    layers = sources + [layer for made in reversed(groups) for layer in made]
    kept = [blob_name(name) for name in outputs]
    _check_complete(layers, kept)
    return with_splits(fuse(layers, kept), kept)


def _check_complete(layers: Sequence[Layer], outputs: Sequence[str]) -> None:
    """:raises Unconvertible: a blob is read that no layer writes (a constant, for instance)."""
    written: set[str] = set()
    for layer in layers:
        for blob in layer.reads:
            if blob not in written:
                raise Unconvertible(layer.nodes[-1], f"reads {blob!r}, which is constant")
        written.update(layer.writes)
    for blob in outputs:
        if blob not in written:
            raise Unconvertible(blob, "a constant that is an output")


def _input(value: onnx.ValueInfoProto, shapes: Mapping[str, Shape]) -> Layer:
    """:raises Unconvertible: it is no float32 tensor with a batch of 1."""
    if value.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise Unconvertible(value.name, "an input that is not float32")
    scope = Scope(helper.make_node("Input", [], [value.name]), shapes, {}, 0)
    name = blob_name(value.name)
    return Layer("Input", name, (), (name,), shape_params(scope.shape_out), (), (value.name,))


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shapes of all tensors that have one, by ONNX's own inference."""
    graph = model.graph
    nodes = [_with_inference(node) for node in graph.node]
    bare = onnx.GraphProto(
        name=graph.name, node=nodes, input=graph.input, output=graph.output, value_info=graph.value_info,
        initializer=[_without_weights(tensor) for tensor in graph.initializer],
    )  # fmt: skip
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=bare)
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    found: dict[str, Shape] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dimensions):
            found[value.name] = tuple(d.dim_value for d in dimensions)
    return found


def _with_inference(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node whose results have the shapes of this one's: onnx has no rule for GroupNormalization."""
    if node.op_type == "GroupNormalization":
        return helper.make_node("Identity", node.input[:1], node.output)
    return node


def _without_weights(tensor: TensorProto) -> TensorProto:
    """What inference needs of an initializer: it copies the whole model, and looks at few numbers."""
    if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) <= _FEW:
        return tensor
    place = onnx.StringStringEntryProto(key="location", value="-")
    return TensorProto(
        name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, data_location=TensorProto.EXTERNAL,
        external_data=[place],
    )  # fmt: skip


_FEW = 64  # numbers that inference may want to see, such as the scales of a Resize


def _constants(graph: onnx.GraphProto, weights: Mapping[str, Array] | None) -> dict[str, Array]:
    """Values of initializers and of Constant nodes.

    :raises Unconvertible: an initializer without a value.
    """
    found: dict[str, Array] = {}
    for tensor in graph.initializer:
        if weights is not None and tensor.name in weights:
            found[tensor.name] = weights[tensor.name]
        elif tensor.data_location != TensorProto.EXTERNAL:
            found[tensor.name] = numpy_helper.to_array(tensor)
        elif weights is None:
            kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            found[tensor.name] = np.broadcast_to(np.zeros((), dtype=kind), tuple(tensor.dims))
        else:
            raise Unconvertible(tensor.name, "its values are not at hand")
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in found:  # exporters share equal weights that way
            found[node.output[0]] = found[node.input[0]]
        elif node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if value is not None:
                found[node.output[0]] = numpy_helper.to_array(value)
        elif node.op_type == "DequantizeLinear" and found.keys() >= set(node.input) - {""}:
            found[node.output[0]] = dequantized(node, [found[name] for name in node.input if name])
    return found
