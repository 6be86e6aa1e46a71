"""The model that a plan's compression makes."""

from __future__ import annotations

import onnx

from hetrl.compress.pruning import prune
from hetrl.compress.weights import complete_model
from hetrl.graph import OperatorGraph
from hetrl.plan import Compression
from hetrl.zoo.source import MemorySource, ModelSource


def compressed_model(source: ModelSource, graph: OperatorGraph, compression: Compression) -> onnx.ModelProto:
    """The complete model; channels go by their L1 norms, in multiples of four.

    :param graph: of the original, with the shapes that it will run on.
    :raises ModelError: weights are missing or not finite.
    """
    model = complete_model(source)
    if compression.prune_ratio == 0:
        return model
    shapes = {name: graph.tensor_by_name[name].shape for name in graph.inputs}
    return prune(model, compression.prune_ratio, input_shapes=shapes).model


def compressed_source(source: ModelSource, graph: OperatorGraph, compression: Compression) -> ModelSource:
    """The same as a source of weights; the original where nothing is compressed."""
    if compression == Compression():
        return source
    return MemorySource(compressed_model(source, graph, compression), f"{source.name}-compressed")
