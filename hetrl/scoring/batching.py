"""A model that was made for a fixed number of samples, changed so that it takes any number.

Shapes alone do not prove that samples stay apart (a softmax may run over them), so whoever uses such a model compares
it with the original on samples first (`hetrl.scoring.running`).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hetrl.scoring.interface import Interface

BATCH = "batch"
SHAPE_OF_ONE_AXIS = 15  # opset from which on Shape takes a part


def with_free_batch(model: onnx.ModelProto, wanted: Interface) -> onnx.ModelProto:
    """The model with a symbolic first size of all inputs; shapes that constants fix to the old one follow.

    The result may not run, or may mix samples.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    if wanted.batch is None:
        return result
    names = {spec.name for spec in wanted.inputs}
    for value in graph.input:
        if value.name in names:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    del graph.value_info[:]
    constants = _constants(graph)
    _free_reshapes(graph, wanted.batch, constants)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if wanted.batch == 1 and opset >= SHAPE_OF_ONE_AXIS:
        _free_concatenations(graph, constants)
    return result


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return tensors


def _free_reshapes(graph: onnx.GraphProto, batch: int, tensors: dict[str, onnx.TensorProto]) -> None:
    """Give every Reshape to constant sizes that begin with the old number of samples the new number."""
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[0] in tensors or node.input[1] not in tensors:
            continue
        sizes = numpy_helper.to_array(tensors[node.input[1]]).tolist()
        if not sizes or sizes[0] != batch:
            continue
        if -1 in sizes:
            sizes[0] = 0  # as many as the input has
            del node.attribute[:]  # allowzero, which would have 0 mean nothing
        else:
            sizes[0] = -1
        name = f"{node.output[0]}/free_sizes"
        graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
        node.input[1] = name


def _free_concatenations(graph: onnx.GraphProto, tensors: dict[str, onnx.TensorProto]) -> None:
    """Repeat constants that are concatenated to a sample, such as a transformer's class token, for each sample."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        others = [name for name in node.input if name not in tensors]
        if node.op_type == "Concat" and others:
            for index, name in enumerate(node.input):
                rank = len(tensors[name].dims) if name in tensors else 0
                if rank > 1 and tensors[name].dims[0] == 1 and node.attribute[0].i not in (0, -rank):
                    nodes += _repeated(graph, node, index, others[0], rank)
        nodes.append(node)
    if len(nodes) > len(graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _repeated(
    graph: onnx.GraphProto, node: onnx.NodeProto, index: int, like: str, rank: int
) -> tuple[onnx.NodeProto, ...]:
    """Nodes that repeat an operand as often as `like` has samples; `node` reads it then."""
    name = f"{node.output[0]}/free_{index}"
    graph.initializer.append(numpy_helper.from_array(np.ones(rank - 1, np.int64), f"{name}_ones"))
    count = helper.make_node("Shape", [like], [f"{name}_count"], start=0, end=1)
    sizes = helper.make_node("Concat", [f"{name}_count", f"{name}_ones"], [f"{name}_sizes"], axis=0)
    expand = helper.make_node("Expand", [node.input[index], f"{name}_sizes"], [name])
    node.input[index] = name
    return count, sizes, expand
