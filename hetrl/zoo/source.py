"""Where a model with its weights comes from: a built-in network with seeded weights, or an ONNX file."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper

from hetrl.errors import ModelError, UsageError
from hetrl.graph import OperatorGraph
from hetrl.graph.protofile import external_location, read_model
from hetrl.zoo import names, resolve_model
from hetrl.zoo.blueprint import Blueprint, Fill, Weight

Bytes = NDArray[np.uint8]
_SHIFT, _SCALE, _MEAN, _VARIANCE = Fill.SHIFT, Fill.SCALE, Fill.SHIFT, Fill.VARIANCE
# Fills by position of the operators whose operands mean more than weight and bias.
_NORMS = {
    "BatchNormalization": (_SCALE, _SHIFT, _MEAN, _VARIANCE),
    "LayerNormalization": (_SCALE, _SHIFT),
    "InstanceNormalization": (_SCALE, _SHIFT),
    "GroupNormalization": (_SCALE, _SHIFT),
}
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class ModelSource(ABC):
    """A model and the bytes of its weights, which are read one tensor at a time."""

    name: str

    @property
    @abstractmethod
    def key(self) -> str:
        """Changes when the weights may have changed; cheap, it reads none of them."""

    @property
    @abstractmethod
    def model(self) -> onnx.ModelProto:
        """The model with functions inlined; its large initializers may be external data, or absent."""

    @abstractmethod
    def weights(self, tensor: TensorProto) -> Bytes:
        """The bytes of one of the model's initializers, as ONNX's `raw_data` has them.

        :raises ModelError: they are missing.
        """

    def lacks(self, tensor: TensorProto) -> bool:
        """Whether the bytes of an initializer are nowhere, so that `weights` draws them or fails."""
        return False

    @abstractmethod
    def save(self, folder: Path) -> Path:
        """A complete ONNX file of the whole model, in `folder` unless there is one already."""


class BlueprintSource(ModelSource):
    """A network of the builder with seeded random weights."""

    def __init__(self, blueprint: Blueprint, name: str, seed: int) -> None:
        self.name = name
        self._blueprint = blueprint
        self._seed = seed

    @cached_property
    def key(self) -> str:
        network = hashlib.sha256(self.model.SerializeToString(deterministic=True))
        network.update(repr(self._blueprint.weights).encode())
        return f"blueprint {network.hexdigest()} seed {self._seed}"

    @property
    def model(self) -> onnx.ModelProto:
        return self._blueprint.model

    @cached_property
    def _index(self) -> dict[str, int]:
        return {weight.name: index for index, weight in enumerate(self._blueprint.weights)}

    def lacks(self, tensor: TensorProto) -> bool:
        return tensor.name in self._index

    def weights(self, tensor: TensorProto) -> Bytes:
        index = self._index[tensor.name]
        return _bytes_of(self._blueprint.weights[index].draw(self._seed, index))

    def save(self, folder: Path) -> Path:
        path = folder / f"{self.name}.onnx"
        self._blueprint.save(path, self._seed)
        return path


class FileSource(ModelSource):
    """An ONNX file, its weights inside or beside it.

    :param seeded_weights: draw what is missing of them from this seed, He-scaled for the operator that reads it.
    """

    def __init__(self, path: Path, seeded_weights: int | None = None) -> None:
        self.name = path.stem
        self._path = path
        self._seed = seeded_weights

    @property
    def key(self) -> str:
        files = {self._path}
        for tensor in self.model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                place = external_location(tensor, self._path.parent)
                files |= {place[0]} if place else set()
        stamps = sorted((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        return json.dumps(["file", self._seed, stamps])

    @cached_property
    def model(self) -> onnx.ModelProto:
        model = read_model(self._path)
        return inliner.inline_local_functions(model) if model.functions else model

    def weights(self, tensor: TensorProto) -> Bytes:
        if tensor.data_location != TensorProto.EXTERNAL:
            raw = tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
            return np.frombuffer(raw, np.uint8)
        place = self._place(tensor)
        if place is not None:
            file, offset, length = place
            return np.memmap(file, np.uint8, "r", offset, (length,)) if length else np.zeros(0, np.uint8)
        if self._seed is None:
            lost = next((e.value for e in tensor.external_data if e.key == "location"), "")
            raise _no_weights(str(self._path), f" (not in {lost}, beside it)" if lost else "")
        return self._drawn(tensor)

    def lacks(self, tensor: TensorProto) -> bool:
        return tensor.data_location == TensorProto.EXTERNAL and self._place(tensor) is None

    def _place(self, tensor: TensorProto) -> tuple[Path, int, int] | None:
        """File, offset and length of an external tensor; None where they are not there."""
        place = external_location(tensor, self._path.parent)
        if place is None:
            return None
        file, offset, length = place
        length = file.stat().st_size - offset if length is None else length
        return (file, offset, length) if 0 <= length and offset + length <= file.stat().st_size else None

    def _drawn(self, tensor: TensorProto) -> Bytes:
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            raise ModelError(f"{self._path}: the constant {tensor.name!r} is missing, and is no float to be drawn")
        index, weight = self._fills[tensor.name]
        return _bytes_of(weight.draw(self._seed or 0, index).astype(helper.tensor_dtype_to_np_dtype(tensor.data_type)))

    @cached_property
    def _fills(self) -> dict[str, tuple[int, Weight]]:
        """How each initializer is drawn, by what the first operator that reads it does with it."""
        readers: dict[str, tuple[onnx.NodeProto, int]] = {}
        for node in self.model.graph.node:
            for position, name in enumerate(node.input):
                readers.setdefault(name, (node, position))
        fills = {}
        for index, tensor in enumerate(self.model.graph.initializer):
            node, position = readers.get(tensor.name, (onnx.NodeProto(), 0))
            fills[tensor.name] = (index, _weight(tensor, node, position))
        return fills

    def save(self, folder: Path) -> Path:
        if self._seed is None:
            return self._path
        model = onnx.ModelProto()
        model.CopyFrom(read_model(self._path))
        path = folder / self._path.name
        with (folder / f"{path.name}.weights").open("wb") as stream:
            for tensor in model.graph.initializer:
                if tensor.data_location != TensorProto.EXTERNAL:
                    continue
                offset, length = stream.tell(), stream.write(self.weights(tensor).data)
                del tensor.external_data[:]
                for key, value in (("location", f"{path.name}.weights"), ("offset", offset), ("length", length)):
                    tensor.external_data.add(key=key, value=str(value))
        path.write_bytes(model.SerializeToString(deterministic=True))
        return path


class MemorySource(ModelSource):
    """A complete model in memory.

    :param model: with the bytes of every initializer inside.
    """

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        self.name = name
        self._model = model

    @cached_property
    def key(self) -> str:
        return f"memory {hashlib.sha256(self._model.SerializeToString(deterministic=True)).hexdigest()}"

    @property
    def model(self) -> onnx.ModelProto:
        return self._model

    def weights(self, tensor: TensorProto) -> Bytes:
        return np.frombuffer(tensor.raw_data, np.uint8)

    def save(self, folder: Path) -> Path:
        path = folder / f"{self.name}.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)  # saving takes the weights out of it
        onnx.save(copy, path, save_as_external_data=True, location=f"{path.name}.weights")
        return path


def open_source(
    model: str | Path, seeded_weights: int | None = None, input_shapes: dict[str, tuple[int, ...]] | None = None
) -> tuple[ModelSource, OperatorGraph]:
    """What `--model` means, with weights, and its operator graph.

    :raises ModelError: the weights are not at hand; the hint is the option that draws them.
    :raises UnknownName: neither a built-in network nor a file.
    """
    if seeded_weights is not None and seeded_weights < 0:
        raise UsageError(f"{seeded_weights} is no seed for weights", "give 0 or more")
    graph = resolve_model(model, input_shapes)
    if isinstance(model, Path) or model not in names():
        return FileSource(Path(model), seeded_weights), graph
    if seeded_weights is None:
        raise _no_weights(f"the built-in network {model!r}")
    from hetrl.zoo.networks import blueprint

    return BlueprintSource(blueprint(model), model, seeded_weights), graph


def source_of(graph: OperatorGraph, builtin_seed: int | None = None) -> ModelSource:
    """The weights of the model that a graph was read from.

    :param builtin_seed: draws a built-in network's weights where none was given with it.
    :raises ModelError: they are missing.
    :raises UsageError: it was made in memory.
    """
    origin = graph.origin
    if origin is None:
        raise UsageError(f"{graph.name!r} was made in memory, so its weights are not known", "give an ONNX file")
    seed = builtin_seed if origin.builtin and origin.seeded_weights is None else origin.seeded_weights
    shapes = {name: graph.tensor_by_name[name].shape for name in graph.inputs}
    return open_source(origin.model if origin.builtin else Path(origin.model), seed, shapes)[0]


def _no_weights(where: str, why: str = "") -> ModelError:
    return ModelError(
        f"{where} has no weights{why}, without which it cannot run", "draw them with --seeded-weights SEED"
    )


def _bytes_of(numbers: NDArray[np.floating]) -> Bytes:
    little = np.ascontiguousarray(numbers, dtype=numbers.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8)


def _weight(tensor: TensorProto, node: onnx.NodeProto, position: int) -> Weight:
    shape = tuple(tensor.dims)
    if node.op_type in _NORMS:
        fills = _NORMS[node.op_type]
        return Weight(tensor.name, shape, fills[min(max(position, 1), len(fills)) - 1], 1.0)
    if node.op_type in _PRODUCTS and position < 2 and len(shape) > 1:
        # `Weight` takes all sizes but the first for the fan-in; the gain makes up for other layouts.
        return Weight(tensor.name, shape, Fill.HE, math.sqrt(math.prod(shape[1:]) / _fan_in(shape, node)))
    return Weight(tensor.name, shape, Fill.SHIFT, 1.0)


def _fan_in(shape: tuple[int, ...], node: onnx.NodeProto) -> int:
    if node.op_type == "Conv":
        return math.prod(shape[1:])
    if node.op_type == "ConvTranspose":
        return shape[0]
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return shape[-1] if transposed else shape[-2]
