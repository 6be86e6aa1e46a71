"""ONNX models as operator graphs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import onnx
from onnx import inliner

from hetrl.errors import HetrlError, ModelError
from hetrl.graph.fusion import Grouping, fuse
from hetrl.graph.model import OperatorGraph, Tensor
from hetrl.graph.node import node_of
from hetrl.graph.operator import Operand
from hetrl.graph.protofile import read_model, weights_digest
from hetrl.graph.shapes import TypedGraph, type_graph


def load_graph(
    path: str | Path, *, input_shapes: Mapping[str, tuple[int, ...]] | None = None, hash_weights: bool = False
) -> OperatorGraph:
    """Read an ONNX file without its weights; a file of external weights may be missing.

    :param input_shapes: sizes of inputs by name, needed where the model leaves them open.
    :param hash_weights: also read the weights once, for `weights_hash` (None if some are missing).
    :raises ModelError: the file is missing, no ONNX, or no valid graph; the message names file and node.
    :raises UnresolvedShape: a size stays unknown; the hint is the option that gives it.
    :raises UsageError: a given shape does not fit the model's input.
    """
    path = Path(path)
    model = read_model(path)
    graph = _read(model, path.stem, str(path), input_shapes or {}, path.parent)
    if hash_weights:
        return msgspec.structs.replace(graph, weights_hash=weights_digest(model, path.parent))
    return graph


def graph_from_model(
    model: onnx.ModelProto,
    *,
    name: str,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    grouping: Grouping = fuse,
) -> OperatorGraph:
    """The same for a model in memory, which is not changed; raises what `load_graph` raises.

    :param grouping: what decides which operators are one kernel (see `hetrl.optimize.fusion` for others).
    """
    return _read(model, name, name, input_shapes or {}, None, grouping)


def _read(
    model: onnx.ModelProto,
    name: str,
    where: str,
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path | None,
    grouping: Grouping = fuse,
) -> OperatorGraph:
    try:
        return _operator_graph(model, name, where, shapes, folder, grouping)
    except HetrlError:
        raise
    except Exception as error:  # damaged files break onnx and protobuf in ways that nobody can list
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{where} is no valid ONNX model: {type(error).__name__}: {reason}") from error


def _operator_graph(
    model: onnx.ModelProto,
    name: str,
    where: str,
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path | None,
    grouping: Grouping,
) -> OperatorGraph:
    if not model.opset_import:
        raise ModelError(f"{where} does not say which ONNX opset it uses")
    if model.functions:
        model = inliner.inline_local_functions(model)
    typed = type_graph(model, dict(shapes), where, folder)
    nodes = tuple(node_of(operator) for operator in typed.operators)
    tensors = [*typed.inputs, *(result for operator in typed.operators for result in operator.results)]
    return OperatorGraph(
        name=name,
        nodes=nodes,
        groups=grouping(typed.operators, typed.outputs),
        tensors=tuple(Tensor(t.name, t.shape, t.dtype, t.bytes) for t in tensors),
        inputs=tuple(operand.name for operand in typed.inputs),
        outputs=typed.outputs,
        structure_hash=_structure_hash(typed),
        warnings=typed.warnings,
        operators=typed.operators,
    )


def _structure_hash(typed: TypedGraph) -> str:
    """sha256 (hex) over ids, operators, attributes, wiring, and the shapes and types of activations and weights."""
    operators = [
        [
            operator.id,
            operator.signature,
            [operand.name for operand in operator.activations],
            [_described(result) for result in operator.results],
        ]
        for operator in typed.operators
    ]
    text = json.dumps(
        ["hetrl.structure/1", operators, [_described(i) for i in typed.inputs], typed.outputs], separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _described(operand: Operand) -> list[object]:
    return [operand.name, operand.shape, operand.dtype]
