"""The model that a plan's compression makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from msgspec import UNSET
from onnx import inliner

from hetrl.compress.compensate import Moments, moments
from hetrl.compress.constants import Array
from hetrl.compress.low_rank import factor
from hetrl.compress.low_rank.planned import factored_names, policy
from hetrl.compress.planned import compressed_graph, group_ratios
from hetrl.compress.pruning import prune
from hetrl.compress.weights import complete_model
from hetrl.compression import Compression
from hetrl.errors import ModelError
from hetrl.graph import OperatorGraph
from hetrl.graph.reader import graph_from_model
from hetrl.zoo.source import MemorySource, ModelSource


def compressed_model(
    source: ModelSource, graph: OperatorGraph, compression: Compression, known: Moments | None = None
) -> onnx.ModelProto:
    """The complete model; channels go by their L1 norms.

    :param graph: of the original, with the shapes that it will run on.
    :param known: of the original; weights take over what lost channels carried (`compress.compensate`).
    :raises ModelError: weights are missing or not finite.
    :raises PlanError: not as many ratios as the network has stages.
    """
    model = complete_model(source)
    if compression.prunes:
        ratios = group_ratios(graph, compression)
        model = prune(model, ratios, multiple=compression.multiple, input_shapes=_shapes(graph), known=known).model
    if compression.low_rank is UNSET:
        return model
    wanted = factored_names(compressed_graph(graph, compression))
    done = factor(model, policy(compression.low_rank), input_shapes=_shapes(graph), only=wanted)
    if {layer.name for layer in done.report.factored} != wanted:
        raise ModelError("low rank made other layers smaller than was planned", "please report this model")
    return done.model


def moments_of(source: ModelSource, graph: OperatorGraph, inputs: Sequence[Mapping[str, Array]]) -> Moments:
    """What `compressed_model` can use of samples of a model's inputs; see `moments`."""
    model = complete_model(source)
    if model.functions:
        model = inliner.inline_local_functions(model)
    return moments(model, graph_from_model(model, name=graph.name, input_shapes=_shapes(graph)), inputs)


def _shapes(graph: OperatorGraph) -> dict[str, tuple[int, ...]]:
    return {name: graph.tensor_by_name[name].shape for name in graph.inputs}


def compressed_source(source: ModelSource, graph: OperatorGraph, compression: Compression) -> ModelSource:
    """The same as a source of weights; the original where nothing is compressed."""
    if not compression.changes:
        return source
    return MemorySource(compressed_model(source, graph, compression), f"{source.name}-compressed")
