"""A model with its weights, as exporters need it, and what it answers to a seeded sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from hetrl.compress.variant import compressed_source
from hetrl.compression import Compression
from hetrl.device_bridge.blobs import BlobStore
from hetrl.errors import ModelError
from hetrl.export.npz import read_npz
from hetrl.fidelity import seeded_inputs
from hetrl.graph import OperatorGraph
from hetrl.graph.single import Array
from hetrl.partition.partitioner import Partitioner
from hetrl.partition.reference import reference_outputs
from hetrl.zoo.source import Bytes, FileSource, ModelSource

SAMPLE_SEED = 0
_WEIGHTS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True)
class Weighted:
    """The model that runs: what the plan's compression made of the original.

    :param graph: of it; `store` is where the pieces of it go.
    """

    source: ModelSource
    graph: OperatorGraph
    compression: Compression
    store: BlobStore

    @staticmethod
    def of(
        source: ModelSource, graph: OperatorGraph, compressed: OperatorGraph, compression: Compression, store: BlobStore
    ) -> Weighted:
        """:param graph: of the original; `compressed` of what runs."""
        return Weighted(compressed_source(source, graph, compression), compressed, compression, store)

    @cached_property
    def partitioner(self) -> Partitioner:
        return Partitioner(self.source, self.graph, self.store, self.compression)

    @cached_property
    def inputs(self) -> dict[str, Array]:
        """A seeded sample."""
        return seeded_inputs(self.graph, SAMPLE_SEED)

    @cached_property
    def outputs(self) -> dict[str, Array]:
        """What the model, whole, makes of it in ONNX Runtime."""
        return reference_outputs(self.source, self.inputs)


class ReplacedWeights(ModelSource):
    """A model with weights from elsewhere.

    :param file: an ONNX file whose initializers have the model's names and shapes, or an npz file of such arrays.
    :raises ModelError: weights are missing in it, or have another shape.
    """

    def __init__(self, model: onnx.ModelProto, name: str, file: Path) -> None:
        self.name = name
        self._model = model
        self._file = file
        self._given = _weights_of(file)
        for tensor in model.graph.initializer:
            self.weights(tensor)

    @cached_property
    def key(self) -> str:
        stamp = self._file.stat()
        return f"weights {self.name} {self._file.resolve()} {stamp.st_size} {stamp.st_mtime_ns}"

    @property
    def model(self) -> onnx.ModelProto:
        return self._model

    def weights(self, tensor: onnx.TensorProto) -> Bytes:
        if tensor.name not in self._given:
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type in _WEIGHTS:
                raise ModelError(
                    f"{self._file} has no weight {tensor.name!r}", "`hetrl compress` writes files with weights"
                )
            kept = np.ascontiguousarray(onnx.numpy_helper.to_array(tensor))  # sizes and axes, which are no weights
            return kept.reshape(-1).view(np.uint8)
        array = self._given[tensor.name]
        wanted = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if array.shape != tuple(tensor.dims) or array.dtype != wanted:
            raise ModelError(
                f"{self._file}: the weight {tensor.name!r} is {array.dtype} {list(array.shape)}, "
                f"not {wanted} {list(tensor.dims)}"
            )
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def save(self, folder: Path) -> Path:
        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        for tensor in copy.graph.initializer:
            raw = self.weights(tensor).tobytes()
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = raw
        path = folder / f"{self.name}.onnx"
        onnx.save(copy, path, save_as_external_data=True, location=f"{path.name}.weights")
        return path


def _weights_of(file: Path) -> Mapping[str, Array]:
    if not file.is_file():
        raise ModelError(f"{file} cannot be read", "give an ONNX file or an npz file of weights")
    if file.suffix == ".npz":
        return read_npz(file)
    source = FileSource(file)
    found: dict[str, Array] = {}
    for tensor in source.model.graph.initializer:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        found[tensor.name] = source.weights(tensor).view(kind).reshape(tuple(tensor.dims))
    return found
