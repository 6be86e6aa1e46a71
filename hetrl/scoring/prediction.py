"""Without data: the accuracy that a smaller version of a built-in network should lose, predicted."""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto

from hetrl.accuracy import predicted_accuracy_drop_pct
from hetrl.scoring.results import PredictedDrop

INT8 = (TensorProto.INT8, TensorProto.UINT8)


def predicted_drop(model: onnx.ModelProto, original: onnx.ModelProto) -> PredictedDrop:
    """What `hetrl.accuracy` says, as if the weights that are missing had gone by pruning channels.

    Pruning at the ratio r leaves (1 - r) squared of the weights, which is turned around here. Weights are constants
    of two dimensions or more; a model with any of them in 8-bit integers counts as int8.
    """
    kept = min(1.0, _weights(model) / max(1, _weights(original)))
    int8 = _is_int8(model) and not _is_int8(original)
    ratio = min(1 - math.sqrt(kept), 0.99)
    return PredictedDrop(points=predicted_accuracy_drop_pct(ratio, int8=int8), kept_weights=kept, int8=int8)


def _weights(model: onnx.ModelProto) -> int:
    return sum(math.prod(tensor.dims) for tensor in _constants(model))


def _is_int8(model: onnx.ModelProto) -> bool:
    return any(tensor.data_type in INT8 for tensor in _constants(model))


def _constants(model: onnx.ModelProto) -> list[TensorProto]:
    nodes = [node for node in model.graph.node if node.op_type == "Constant" and node.attribute]
    tensors = [*model.graph.initializer, *(node.attribute[0].t for node in nodes)]
    return [tensor for tensor in tensors if len(tensor.dims) > 1]
