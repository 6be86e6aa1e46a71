"""Puts links into a model in place of its operators."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hetrl.compress.cleanup import drop_unread, fresh, tensor_names
from hetrl.compress.low_rank.layers import Layer
from hetrl.compress.low_rank.links import link_nodes
from hetrl.compress.low_rank.schemes import Factor
from hetrl.compress.low_rank.spectrum import Floats

ABSENT = "weights-not-included"


class Writer:
    """Puts links into the model in place of its operators."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._taken = tensor_names(model)
        self._chains: dict[int, list[onnx.NodeProto]] = {}

    def replace(
        self,
        layer: Layer,
        factors: Sequence[Factor],
        arrays: Sequence[Floats] | None,
    ) -> tuple[str, ...]:
        """Put weights of these shapes in place of the layer's; their names. Without arrays they are absent, too."""
        names = tuple(fresh(f"{layer.weight}.{factor.suffix}", self._taken) for factor in factors)
        shapes = [factor.shape[::-1] if layer.dense and layer.turned else factor.shape for factor in factors]
        kind = layer.constant.tensor.data_type
        for position, (name, shape) in enumerate(zip(names, shapes, strict=True)):
            tensor = TensorProto(name=name, data_type=kind, dims=shape)
            if arrays is None:
                tensor.data_location = TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=ABSENT)
            else:
                array = arrays[position].reshape(factors[position].shape)
                array = array.T if layer.dense and layer.turned else array
                tensor = _tensor(name, array, kind)
            self._model.graph.initializer.append(tensor)
        for use in layer.uses:
            node = self._model.graph.node[use.index]
            middles = [fresh(f"{node.output[0]}.rank", self._taken) for _ in factors[1:]]
            self._chains[use.index] = link_nodes(node, factors, names, middles, self._model)
        return names

    def finish(self) -> None:
        """Put the links in their places, and drop what nobody reads any more."""
        if not self._chains:
            return
        graph = self._model.graph
        nodes: list[onnx.NodeProto] = []
        for index, node in enumerate(graph.node):
            nodes += self._chains.get(index) or [_copy_node(node)]
        del graph.node[:]
        graph.node.extend(nodes)
        self._model.ir_version = max(self._model.ir_version, 4)  # before that every initializer had to be an input
        drop_unread(self._model)


def _tensor(name: str, array: Floats, kind: int) -> TensorProto:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    return numpy_helper.from_array(np.ascontiguousarray(array, dtype=dtype), name)


def _copy_node(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
