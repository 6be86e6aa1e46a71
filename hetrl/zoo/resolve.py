"""What `--model` means: a built-in network or an ONNX file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hetrl.errors import UnknownName
from hetrl.graph.model import OperatorGraph
from hetrl.zoo.catalog import catalog


def is_model_path(name: str) -> bool:
    """Whether a `--model` value is a path: it has a separator or the suffix .onnx, or such a file exists."""
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return any(s in name for s in separators) or name.lower().endswith(".onnx") or Path(name).exists()


def resolve_model(name_or_path: str | Path, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> OperatorGraph:
    """The operator graph of a built-in network (which wins over a file of its name) or of an ONNX file.

    :raises UnknownName: neither; the nearest built-in name is the hint.
    :raises ModelError: the file is missing or no valid model.
    :raises UsageError: a given input shape does not fit.
    """
    from hetrl.graph.reader import graph_from_model, load_graph

    known = [entry.name for entry in catalog()]
    if isinstance(name_or_path, str) and name_or_path in known:
        from hetrl.zoo.networks import blueprint

        return graph_from_model(blueprint(name_or_path).model, name=name_or_path, input_shapes=input_shapes)
    if isinstance(name_or_path, Path) or is_model_path(name_or_path):
        return load_graph(name_or_path, input_shapes=input_shapes)
    raise UnknownName("model", name_or_path, known, "hetrl models")
