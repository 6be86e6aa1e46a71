"""Half precision: a graph that computes in float16, or weights that are stored in 16 bits and widened at the start.

Whether an operator takes float16 is what its ONNX schema says, position by position; where it does not, Casts stand
around it. bfloat16 is for storage alone: before opset 22 ONNX has no convolution in it, and ONNX Runtime's CPU has none
at all. Inputs and outputs of a model stay float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hetrl.compress.casting import Casting
from hetrl.compress.cleanup import drop_unread, fresh, tensor_names
from hetrl.compress.narrow import Half, narrowed
from hetrl.errors import ModelError

WORTH = 256  # elements from which a weight is worth a Cast of its own


class HalfReport(msgspec.Struct, frozen=True):
    """What half precision is used for.

    :param stored: the type of the weights.
    :param computed: the type in which operators compute: `float16` or `float32`.
    :param tensors: weights that were converted; `limited` of them had numbers beyond what the type holds.
    :param kept: operators that compute in float32 all the same, and why; the model's name where all do.
    """

    stored: str
    computed: str
    tensors: int
    limited: int
    kept: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Halved:
    """The model, and what was done."""

    model: onnx.ModelProto
    report: HalfReport


def halve(model: onnx.ModelProto, half: Half) -> Halved:
    """A complete float32 model in half precision.

    :raises ModelError: it has no float32 weights.
    """
    if not any(tensor.data_type == TensorProto.FLOAT for tensor in model.graph.initializer):
        raise ModelError("the model has no float32 weights to convert")
    if half is Half.BFLOAT16:
        return _stored(model, half, "bfloat16 is for storage")
    casting = Casting.of(model)
    if isinstance(casting, str):
        return _stored(model, half, casting)
    result = casting.result()
    report = HalfReport(half.value, half.value, casting.tensors, casting.limited, tuple(casting.kept))
    return Halved(result, report)


def _stored(model: onnx.ModelProto, half: Half, reason: str) -> Halved:
    """Weights in half precision with a Cast behind each, and the graph as it was."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    taken, casts, limited = tensor_names(result), [], 0
    for tensor in result.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < WORTH:
            continue
        name, narrow = tensor.name, fresh(f"{tensor.name}.{half.value}", taken)
        array, cut = narrowed(np.asarray(numpy_helper.to_array(tensor)), half)
        limited += cut
        tensor.CopyFrom(numpy_helper.from_array(array, narrow))
        cast = fresh(f"{name}.cast", taken)
        casts.append(helper.make_node("Cast", [narrow], [name], name=cast, to=TensorProto.FLOAT))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in result.graph.node]
    del result.graph.node[:]
    result.graph.node.extend([*casts, *nodes])
    made = {cast.output[0] for cast in casts}
    for index in reversed(range(len(result.graph.input))):  # old files list weights as inputs as well
        if result.graph.input[index].name in made:
            del result.graph.input[index]
    result.ir_version = max(result.ir_version, 4)
    drop_unread(result)
    name = model.graph.name or "the model"
    return Halved(result, HalfReport(half.value, "float32", len(casts), limited, ((name, reason),)))
