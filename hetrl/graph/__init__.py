"""Any ONNX file as an operator graph. Reading needs `onnx`, which is imported only then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hetrl.graph.inputs import format_shape, parse_input_shape
from hetrl.graph.model import FusionGroup, Geometry, GroupInput, InputRole, Node, OperatorGraph, OpKind, Tensor

__all__ = [
    "FusionGroup",
    "Geometry",
    "GroupInput",
    "InputRole",
    "Node",
    "OpKind",
    "OperatorGraph",
    "Tensor",
    "format_shape",
    "load_graph",
    "parse_input_shape",
]


def load_graph(
    path: str | Path, *, input_shapes: Mapping[str, tuple[int, ...]] | None = None, hash_weights: bool = False
) -> OperatorGraph:
    """Read an ONNX file; see `hetrl.graph.reader.load_graph`."""
    from hetrl.graph import reader

    return reader.load_graph(path, input_shapes=input_shapes, hash_weights=hash_weights)
