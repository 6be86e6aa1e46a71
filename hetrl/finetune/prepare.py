"""What a model needs before training: weights as initializers, running statistics that nobody else reads."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import TensorProto, numpy_helper

from hetrl.errors import ModelError
from hetrl.finetune.trainable import FLOATS, WEIGHT_READERS
from hetrl.graph.wiring import label

FIRST_FREE_INITIALIZERS = 4  # before this IR version, every initializer had to be an input as well


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network, ready for training; operators and their names stay.

    Weights that are Constant nodes become initializers. A running statistic that an exporter stored once for several
    readers, because their numbers were equal, gets a copy per reader, since training makes them different.

    :raises ModelError: a BatchNormalization is in training mode already, or a constant is sparse.
    """
    if model.graph.sparse_initializer:
        raise ModelError(f"the sparse weights {model.graph.sparse_initializer[0].values.name!r} cannot be trained")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if result.ir_version >= FIRST_FREE_INITIALIZERS:
        _lift_constants(result.graph)
        _own_statistics(result.graph)
    return result


def _lift_constants(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node if node.op_type in WEIGHT_READERS for name in node.input}
    kept = []
    for node in graph.node:
        value = node.attribute[0].t if node.op_type == "Constant" and node.attribute[0].name == "value" else None
        if value is None or value.data_type not in FLOATS or len(value.dims) == 0 or node.output[0] not in read:
            kept.append(node)
        else:
            graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(value), node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)


def _own_statistics(graph: onnx.GraphProto) -> None:
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    same = {name: name for name in initializers}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in same:
            same[node.output[0]] = same[node.input[0]]
    reads = Counter(same[name] for n in graph.node if n.op_type != "Identity" for name in n.input if name in same)
    for node in graph.node:
        if node.op_type != "BatchNormalization":
            continue
        if any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute):
            raise ModelError(f"the node {label(node)} is in training mode", "export the model in evaluation mode")
        for position in (3, 4):
            root = same.get(node.input[position])
            if root is None or reads[root] == 1:
                continue
            reads[root] -= 1
            copy = TensorProto()
            copy.CopyFrom(initializers[root])
            copy.name = _free_name(f"{node.output[0]}.{'mean' if position == 3 else 'variance'}", initializers)
            graph.initializer.append(copy)
            initializers[copy.name] = copy
            node.input[position] = copy.name


def _free_name(name: str, taken: dict[str, TensorProto]) -> str:
    while name in taken:
        name += "_"
    return name
