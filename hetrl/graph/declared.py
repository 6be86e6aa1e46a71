"""What a model file says about shapes and types: graph inputs, value infos, attributes, initializers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hetrl.errors import ModelError, UnresolvedShape, UsageError
from hetrl.graph.inputs import format_shape
from hetrl.graph.operator import Attributes, Operand, Value, dtype_bytes
from hetrl.graph.protofile import external_location
from hetrl.graph.wiring import constant_names

SMALL = 1 << 14
"""Elements of the largest constant whose values are looked at: shapes, indices, masks, position tables."""

_DTYPE_NAMES: dict[int, str] = {int(TensorProto.FLOAT): "float32", int(TensorProto.DOUBLE): "float64"}


class Declared(msgspec.Struct, frozen=True):
    """A tensor's declared type; sizes are None where they are symbolic and nothing binds the symbol."""

    dtype: str
    shape: tuple[int | None, ...] | None

    @property
    def static(self) -> tuple[int, ...] | None:
        if self.shape is None:
            return None
        known = tuple(size for size in self.shape if size is not None)
        return known if len(known) == len(self.shape) else None


def dtype_name(code: int) -> str:
    """`float32` for TensorProto.FLOAT, `int8`, `float16`, ..."""
    return _DTYPE_NAMES.get(code) or str(TensorProto.DataType.Name(code)).lower()


def dtype_code(name: str) -> int:
    """The inverse of `dtype_name`."""
    codes = {value: key for key, value in _DTYPE_NAMES.items()}
    return codes.get(name) or int(TensorProto.DataType.Value(name.upper()))


def declared(type_proto: onnx.TypeProto, bindings: Mapping[str, int]) -> Declared | None:
    """Dtype and shape of a tensor type, None for sequences, maps and untyped values."""
    if not type_proto.HasField("tensor_type") or not type_proto.tensor_type.elem_type:
        return None
    tensor = type_proto.tensor_type
    shape: tuple[int | None, ...] | None = None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else bindings.get(dim.dim_param)
            for dim in tensor.shape.dim
        )
    return Declared(dtype_name(tensor.elem_type), shape)


def activation(name: str, shape: tuple[int, ...], dtype: str) -> Operand:
    return Operand(name, shape, dtype, False, 0)


def resolve_inputs(
    graph: onnx.GraphProto, given: Mapping[str, tuple[int, ...]], where: str
) -> tuple[list[Operand], dict[str, int]]:
    """The graph's inputs with all sizes known, and what that makes of the model's symbolic sizes.

    :raises UsageError: a shape for an input that does not exist, or that contradicts the model.
    :raises UnresolvedShape: a symbolic size that no given shape fixes.
    :raises ModelError: an input that is no tensor.
    """
    constants = constant_names(graph)
    infos = {info.name: info for info in graph.input if info.name not in constants}
    for name in given:
        if name not in infos:
            raise UsageError(f"{where} has no input {name!r}", f"its inputs: {', '.join(map(repr, infos))}")
    bindings: dict[str, int] = {}
    for name, shape in given.items():
        _bind(infos[name], name, shape, bindings)
    resolved = []
    for name, info in infos.items():
        type_ = declared(info.type, bindings)
        if type_ is None:
            raise ModelError(f"{where}: the input {name!r} is no tensor")
        fixed = given[name] if name in given else type_.static
        if fixed is None or 0 in fixed:
            example = format_shape(_example(type_.shape))
            told = "an unknown shape" if type_.shape is None else f"the shape {_symbolic(info)}"
            raise UnresolvedShape(
                f"{where}: the input {name!r} has {told}", f"give its sizes, for example --input-shape {name}:{example}"
            )
        resolved.append(activation(name, fixed, type_.dtype))
    return resolved, bindings


def _bind(info: onnx.ValueInfoProto, name: str, shape: tuple[int, ...], bindings: dict[str, int]) -> None:
    if any(size < 1 for size in shape):
        raise UsageError(f"the shape {format_shape(shape)} for the input {name!r} has a size below 1")
    if not info.type.tensor_type.HasField("shape"):
        return
    dims = info.type.tensor_type.shape.dim
    if len(dims) != len(shape):
        raise UsageError(
            f"the shape {format_shape(shape)} for the input {name!r} has {len(shape)} sizes, "
            f"the model's input has {len(dims)}",
            f"the model declares {_symbolic(info)}",
        )
    for dim, size in zip(dims, shape, strict=True):
        fixed = dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else bindings.get(dim.dim_param)
        if fixed is not None and fixed != size:
            raise UsageError(
                f"the shape {format_shape(shape)} does not fit the input {name!r}", f"the model fixes {_symbolic(info)}"
            )
        if dim.dim_param:
            bindings[dim.dim_param] = size


def _symbolic(info: onnx.ValueInfoProto) -> str:
    dims = info.type.tensor_type.shape.dim
    return "x".join(str(d.dim_value) if d.dim_value > 0 else d.dim_param or "?" for d in dims) or "scalar"


def _example(shape: tuple[int | None, ...] | None) -> tuple[int, ...]:
    usual = (1, 3, 224, 224)
    if shape is None:
        return usual
    fill = usual if len(shape) == 4 else (1, *[128] * (len(shape) - 1))
    return tuple(size or default for size, default in zip(shape, fill, strict=True))


def constant(tensor: onnx.TensorProto, name: str | None = None) -> Operand:
    """An initializer as an operand; its bytes follow from its dims, none are read."""
    shape, dtype = tuple(tensor.dims), dtype_name(tensor.data_type)
    if min(shape, default=0) < 0:
        raise ModelError(f"constant {tensor.name!r} has the impossible shape {'x'.join(map(str, shape))}")
    size = 1
    for dim in shape:
        size *= dim
    return Operand(name if name is not None else tensor.name, shape, dtype, True, dtype_bytes(dtype, size))


def small_values(tensor: onnx.TensorProto, folder: Path | None) -> NDArray[np.generic] | None:
    """The numbers of a small constant, None where it is large or its bytes are missing or do not fit its shape."""
    if constant(tensor).elements > SMALL:
        return None
    try:
        if tensor.data_location != TensorProto.EXTERNAL:
            return np.asarray(numpy_helper.to_array(tensor))
        place = external_location(tensor, folder)
        if place is None:
            return None
        file, offset, _ = place
        with file.open("rb") as stream:
            stream.seek(offset)
            inline = TensorProto(dims=tensor.dims, data_type=tensor.data_type)
            inline.raw_data = stream.read(constant(tensor).stored_bytes)
        return np.asarray(numpy_helper.to_array(inline))
    except (ValueError, TypeError, OSError):
        return None


def attributes(node: onnx.NodeProto) -> Attributes:
    """Tensors become `["tensor", dtype, sizes...]`; subgraphs the types and wiring of their nodes."""
    return Attributes({a.name: _value(a) for a in node.attribute})


def _value(attribute: onnx.AttributeProto) -> Value:
    kind = onnx.AttributeProto
    if attribute.type == kind.TENSOR:
        return ("tensor", dtype_name(attribute.t.data_type), *attribute.t.dims)
    if attribute.type == kind.GRAPH:
        return _graph_value(attribute.g)
    if attribute.type == kind.GRAPHS:
        return tuple(_graph_value(graph) for graph in attribute.graphs)
    if attribute.type in (kind.INT, kind.FLOAT, kind.STRING, kind.INTS, kind.FLOATS, kind.STRINGS):
        return _plain(helper.get_attribute_value(attribute))
    return str(attribute.SerializeToString(deterministic=True).hex())


def _plain(value: object) -> Value:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int | float | str):
        return value
    return tuple(_plain(item) for item in value) if isinstance(value, list | tuple) else str(value)


def _graph_value(graph: onnx.GraphProto) -> Value:
    return tuple(
        (node.op_type, tuple(node.input), tuple(node.output), tuple((a.name, _value(a)) for a in node.attribute))
        for node in graph.node
    )
