"""Models whose inputs have open sizes, like that of a batch: what changes them must keep them open, or close them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from hetrl.errors import HetrlError
from hetrl.graph import OperatorGraph, OpKind
from hetrl.graph.reader import graph_from_model


def open_sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Axes of open size of each input that has some."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for info in model.graph.input:
        dims = info.type.tensor_type.shape.dim
        axes = tuple(axis for axis, dim in enumerate(dims) if not dim.HasField("dim_value"))
        if axes and info.name not in weights:
            found[info.name] = axes
    return found


def closed_unless_open(
    original: onnx.ModelProto, model: onnx.ModelProto, given: Mapping[str, tuple[int, ...]]
) -> onnx.ModelProto:
    """The model, its inputs fixed to the given sizes if it takes others no more, although the original does.

    :param model: made from `original` with the same inputs; may be changed.
    :param given: sizes of the inputs that leave some open.
    """
    axes = open_sizes(model)
    if not axes:
        return model
    larger = {
        name: tuple(size + 1 if axis in axes.get(name, ()) else size for axis, size in enumerate(shape))
        for name, shape in given.items()
    }
    if not _fits(original, larger) or _fits(model, larger):
        return model
    for info in model.graph.input:
        for axis in axes.get(info.name, ()):
            info.type.tensor_type.shape.dim[axis].dim_value = given[info.name][axis]
    for info in model.graph.output:  # their sizes follow from those of the inputs
        info.type.tensor_type.ClearField("shape")
    graph = graph_from_model(model, name="closed")
    for info in model.graph.output:
        for size in graph.tensor_by_name[info.name].shape:
            info.type.tensor_type.shape.dim.add(dim_value=size)
    return model


def _fits(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    try:
        graph = graph_from_model(model, name="other sizes", input_shapes=shapes)
    except HetrlError:
        return False
    return all(_keeps_elements(graph, index) for index in range(len(graph.nodes)))


def _keeps_elements(graph: OperatorGraph, index: int) -> bool:
    operator = graph.operators[index]
    source = operator.operands[0]
    view = operator.kind is OpKind.VIEW and operator.op_type != "If"
    return not view or source is None or source.elements == operator.out.elements
