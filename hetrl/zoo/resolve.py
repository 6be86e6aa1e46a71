"""What `--model` means: a built-in network or an ONNX file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from hetrl.errors import UnknownName
from hetrl.graph.model import OperatorGraph, Origin
from hetrl.zoo.catalog import catalog


def is_model_path(name: str) -> bool:
    """Whether a `--model` value is a path: it has a separator or the suffix .onnx, or such a file exists."""
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return any(s in name for s in separators) or name.lower().endswith(".onnx") or Path(name).exists()


def resolve_model(
    name_or_path: str | Path,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    seeded_weights: int | None = None,
) -> OperatorGraph:
    """The operator graph of a built-in network (which wins over a file of its name) or of an ONNX file.

    :param seeded_weights: seed of the weights that it lacks, should it be run.
    :raises UnknownName: neither; the nearest built-in name is the hint.
    :raises ModelError: the file is missing or no valid model.
    :raises UsageError: a given input shape does not fit.
    """
    from hetrl.graph.reader import graph_from_model, load_graph

    known = [entry.name for entry in catalog()]
    if isinstance(name_or_path, str) and name_or_path in known:
        from hetrl.zoo.networks import blueprint

        graph = graph_from_model(blueprint(name_or_path).model, name=name_or_path, input_shapes=input_shapes)
        return replace(graph, origin=Origin(name_or_path, True, seeded_weights))
    if isinstance(name_or_path, Path) or is_model_path(name_or_path):
        graph = load_graph(name_or_path, input_shapes=input_shapes)
        return replace(graph, origin=Origin(str(name_or_path), False, seeded_weights))
    raise UnknownName("model", name_or_path, known, "hetrl models")
