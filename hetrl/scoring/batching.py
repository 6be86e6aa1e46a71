"""A model that was made for a fixed number of samples, changed so that it takes any number.

Shapes alone do not prove that samples stay apart (a softmax may run over them), so whoever uses such a model compares
it with the original on samples first (`hetrl.scoring.running`).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from hetrl.scoring.interface import Interface

BATCH = "batch"


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
    _free_reshapes(graph, wanted.batch)
    return result


def _free_reshapes(graph: onnx.GraphProto, batch: int) -> None:
    """Give every Reshape to constant sizes that begin with the old number of samples the new number."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[0] in tensors or node.input[1] not in tensors:
            continue
        sizes = numpy_helper.to_array(tensors[node.input[1]]).tolist()
        zero_is_zero = any(a.name == "allowzero" and a.i for a in node.attribute)
        if not sizes or sizes[0] != batch or (-1 in sizes and zero_is_zero):
            continue
        sizes[0] = 0 if -1 in sizes else -1  # 0: as many as the input has
        name = f"{node.output[0]}/free_sizes"
        graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
        node.input[1] = name
