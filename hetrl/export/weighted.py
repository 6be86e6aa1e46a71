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
from hetrl.zoo.source import FileSource, MemorySource, ModelSource

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


def with_weights(model: onnx.ModelProto, name: str, file: Path) -> ModelSource:
    """A model with weights from elsewhere.

    :param file: an ONNX file whose initializers have the model's names and shapes, or an npz file of such arrays.
    :raises ModelError: weights are missing in it, or have another shape.
    """
    given = _weights_of(file)
    complete = onnx.ModelProto()
    complete.CopyFrom(model)
    for tensor in complete.graph.initializer:
        raw = _chosen(tensor, given, file).tobytes()
        plain = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=raw)
        tensor.CopyFrom(plain)
    return MemorySource(complete, name)


def _chosen(tensor: onnx.TensorProto, given: Mapping[str, Array], file: Path) -> Array:
    if tensor.name not in given:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type in _WEIGHTS:
            raise ModelError(f"{file} has no weight {tensor.name!r}", "`hetrl compress` writes files with weights")
        return np.asarray(onnx.numpy_helper.to_array(tensor))  # sizes and axes, which are no weights
    array, wanted = given[tensor.name], onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if array.shape != tuple(tensor.dims) or array.dtype != wanted:
        raise ModelError(
            f"{file}: the weight {tensor.name!r} is {array.dtype} {list(array.shape)}, not {wanted} {list(tensor.dims)}"
        )
    return array


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
