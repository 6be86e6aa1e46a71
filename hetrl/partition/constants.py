"""All constants of a model in one file of a blob store, and slices of them as ONNX initializers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import cached_property

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from hetrl.device_bridge.blobs import NAME_DIGITS, BlobStore
from hetrl.errors import ModelError
from hetrl.graph import OperatorGraph
from hetrl.graph.constant_node import constant_results
from hetrl.graph.declared import dtype_code
from hetrl.graph.operator import Operand
from hetrl.graph.single import Array, shape_values
from hetrl.graph.wiring import reads
from hetrl.partition.recipes import recipes_of
from hetrl.zoo.source import Bytes, ModelSource

ALIGNMENT = 64  # bytes: a cache line, and any element's size
INLINE_BYTES = 1024  # constants up to this stay in the submodel: runtimes look at sizes and axes while they load it


class Stored(msgspec.Struct, frozen=True):
    """A constant in a blob; `dtype` is ONNX's code."""

    file: str
    dtype: int
    shape: tuple[int, ...]
    offset: int
    length: int


class Constants:
    """What the operators of a graph read besides activations.

    :param nodes: the ONNX nodes of the graph's operators.
    :raises ModelError: weights are missing, or a constant cannot be computed.
    """

    def __init__(
        self, source: ModelSource, graph: OperatorGraph, nodes: tuple[onnx.NodeProto, ...], store: BlobStore
    ) -> None:
        self._store = store
        self._files: dict[str, Bytes] = {}
        index = store.path(hashlib.sha256(f"{source.key} {graph.structure_hash}".encode()).hexdigest()[:NAME_DIGITS])
        index = index.with_suffix(".index")
        read = _constant_names(graph, nodes)
        self._recipes = {name: node for name, node in recipes_of(source.model, nodes).items() if name in read}
        recipes = [self._recipes.get(name) for name in read]
        names = [n for name, recipe in zip(read, recipes, strict=True) for n in (reads(recipe) if recipe else [name])]
        if index.exists():
            self._stored = msgspec.json.decode(index.read_bytes(), type=dict[str, Stored])
            files = {stored.file for stored in self._stored.values()}
            if self._stored.keys() >= set(names) and all(store.path(name).exists() for name in files):
                return
        self._stored = _store_all(_Evaluator(source.model, source, graph), list(dict.fromkeys(names)), store)
        store.write(index.name, msgspec.json.encode(self._stored))

    def __contains__(self, name: str) -> bool:
        return name in self._stored or name in self._recipes

    def shape(self, name: str) -> tuple[int, ...]:
        recipe = self.recipe(name)
        return self._stored[recipe.input[0] if recipe else name].shape

    def recipe(self, name: str) -> onnx.NodeProto | None:
        """See `hetrl.partition.recipes`."""
        return self._recipes.get(name)

    def values(self, initializer: TensorProto) -> Array:
        """The numbers of an initializer that this made."""
        if initializer.data_location != TensorProto.EXTERNAL:
            return np.asarray(numpy_helper.to_array(initializer))
        place = {entry.key: entry.value for entry in initializer.external_data}
        start = int(place["offset"])
        plain = TensorProto(dims=initializer.dims, data_type=initializer.data_type)
        plain.raw_data = self._file(place["location"])[start : start + int(place["length"])].tobytes()
        return np.asarray(numpy_helper.to_array(plain))

    def whole(self, name: str) -> TensorProto:
        """The constant as an initializer of its own name."""
        return self._initializer(name, self._stored[name])

    def part(self, name: str, axis: int, start: int, stop: int) -> TensorProto:
        """[start, stop) of the constant along an axis, as an initializer named for that.

        Where these bytes are one range of the file they are referred to, else they get a file of their own.
        """
        stored = self._stored[name]
        shape = (*stored.shape[:axis], stop - start, *stored.shape[axis + 1 :])
        new_name = f"{name}[{axis}:{start}:{stop}]"
        if math.prod(stored.shape[:axis]) == 1:
            row = stored.length // stored.shape[axis]
            piece = Stored(stored.file, stored.dtype, shape, stored.offset + start * row, (stop - start) * row)
            return self._initializer(new_name, piece)
        bytes_ = self._file(stored.file)[stored.offset : stored.offset + stored.length]
        rows = bytes_.reshape(math.prod(stored.shape[:axis]), stored.shape[axis], -1)[:, start:stop]
        file = self._store.put_stream([np.ascontiguousarray(rows).reshape(-1)], ".bin")
        return self._initializer(new_name, Stored(file, stored.dtype, shape, 0, rows.size))

    def _initializer(self, name: str, stored: Stored) -> TensorProto:
        tensor = TensorProto(name=name, data_type=stored.dtype, dims=stored.shape)
        if stored.length <= INLINE_BYTES:
            tensor.raw_data = self._file(stored.file)[stored.offset : stored.offset + stored.length].tobytes()
            return tensor
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", stored.file), ("offset", stored.offset), ("length", stored.length)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def _file(self, name: str) -> Bytes:
        if name not in self._files:
            path = self._store.path(name)
            self._files[name] = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        return self._files[name]


def _constant_names(graph: OperatorGraph, nodes: tuple[onnx.NodeProto, ...]) -> list[str]:
    activations = {*graph.tensor_by_name, *(name for node in nodes for name in node.output)}
    return list(dict.fromkeys(name for node in nodes for name in reads(node) if name not in activations))


def _store_all(values: _Evaluator, names: list[str], store: BlobStore) -> dict[str, Stored]:
    places: dict[str, tuple[int, tuple[int, ...], int, int]] = {}

    def chunks() -> Iterator[Bytes]:
        offset = 0
        for name in names:
            dtype, shape, data = values.stored(name)
            places[name] = (dtype, shape, offset, data.size)
            padding = -data.size % ALIGNMENT
            offset += data.size + padding
            yield data
            yield np.zeros(padding, np.uint8)

    file = store.put_stream(chunks(), ".bin")
    return {name: Stored(file, *place) for name, place in places.items()}


class _Evaluator:
    """Constants by name: initializers, and what is computed from them and from shapes before inference."""

    def __init__(self, model: onnx.ModelProto, source: ModelSource, graph: OperatorGraph) -> None:
        self._model = model
        self._source = source
        self._graph = graph
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in model.graph.sparse_initializer}
        self._maker = {output: node for node in model.graph.node for output in node.output if output}
        self._folded: dict[str, TensorProto] = {}

    def stored(self, name: str) -> tuple[int, tuple[int, ...], Bytes]:
        """ONNX's type code, the shape, and the bytes."""
        tensor = self._initializers.get(name)
        if tensor is not None:
            shape, data = tuple(tensor.dims), self._source.weights(tensor)
            if tensor.data_type == TensorProto.STRING or _too_short(tensor, data):
                raise ModelError(f"the weight {name!r} has {data.size} bytes, which do not fit its shape")
            return tensor.data_type, shape, data
        folded = self._fold(name)
        return folded.data_type, tuple(folded.dims), np.frombuffer(folded.raw_data, np.uint8)

    def _value(self, name: str) -> Array:
        tensor = self._initializers.get(name)
        if tensor is None:
            return np.asarray(numpy_helper.to_array(self._fold(name)))
        plain = TensorProto(dims=tensor.dims, data_type=tensor.data_type)
        plain.raw_data = self._source.weights(tensor).tobytes()
        return np.asarray(numpy_helper.to_array(plain))

    def _fold(self, name: str) -> TensorProto:
        if name not in self._folded:
            if name in self._sparse:
                self._folded[name] = numpy_helper.from_array(_dense(self._sparse[name]), name)
            else:
                self._compute(self._maker[name])
        return self._folded[name]

    def _compute(self, node: onnx.NodeProto) -> None:
        if node.op_type in ("Shape", "Size"):
            operand = Operand(node.input[0], self._shape(node.input[0]), "float32", False, 0)
            results = {node.output[0]: shape_values(node, operand)}
        else:
            inputs = {name: self._value(name) for name in reads(node)}
            results = constant_results(node, inputs, self._model.opset_import)
        for name, value in results.items():
            self._folded[name] = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self._graph.tensor_by_name:
            return self._graph.tensor_by_name[name].shape
        if name in self._initializers:
            return tuple(self._initializers[name].dims)
        if name in self._inferred:
            return self._inferred[name]
        return self._value(name).shape

    @cached_property
    def _inferred(self) -> Mapping[str, tuple[int, ...]]:
        """Static shapes of tensors that no live operator makes: only their shape is asked for."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        known = {
            t.name: helper.make_tensor_value_info(t.name, dtype_code(t.dtype), t.shape) for t in self._graph.tensors
        }
        for info in model.graph.input:
            info.CopyFrom(known.get(info.name, info))
        # What onnx cannot infer (the result of an If) the graph may know.
        kept = [info for info in model.graph.value_info if info.name not in known]
        del model.graph.value_info[:]
        model.graph.value_info.extend([*kept, *known.values()])
        found = shape_inference.infer_shapes(model, data_prop=True).graph.value_info
        return {
            info.name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
            for info in found
            if all(dim.HasField("dim_value") for dim in info.type.tensor_type.shape.dim)
        }


def _too_short(tensor: TensorProto, data: Bytes) -> bool:
    """Whether bytes are missing; types of less than a byte are packed, and left to the runtime to judge."""
    size = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    packed = TensorProto.DataType.Name(tensor.data_type).removeprefix("U") in ("INT4", "INT2", "FLOAT4E2M1")
    return not packed and data.size != math.prod(tensor.dims) * size


def _dense(tensor: onnx.SparseTensorProto) -> Array:
    values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    dense = np.zeros(tuple(tensor.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense
