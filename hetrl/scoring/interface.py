"""What a model takes, as data have to fit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from hetrl.errors import ModelError, UsageError

Array = NDArray[np.generic]
NO_NUMBERS = (TensorProto.UNDEFINED, TensorProto.STRING)


@dataclass(frozen=True)
class InputSpec:
    """One input.

    :param shape: sizes, None where any size goes; the first is the number of samples.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...]

    @property
    def words(self) -> str:
        """Its shape for a user: `Nx3x224x224`."""
        return "x".join(["N", *("?" if size is None else str(size) for size in self.shape[1:])])


@dataclass(frozen=True)
class Interface:
    """A model's inputs.

    :param batch: samples that the model takes at once, None where it takes any number.
    """

    inputs: tuple[InputSpec, ...]
    batch: int | None


def interface(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> Interface:
    """The inputs of a model; initializers among them are none.

    :param input_shapes: sizes for symbolic dimensions, by the input's name; the first one of each does not count.
    :raises ModelError: no inputs, one without a shape or of texts, or inputs that want different numbers of samples;
        operators in training mode.
    :raises UsageError: `input_shapes` names no input, or contradicts the model.
    """
    _refuse_training(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    given = dict(input_shapes or {})
    inputs = tuple(_spec(value, given.pop(value.name, None)) for value in model.graph.input if value.name not in stored)
    if given:
        known = ", ".join(spec.name for spec in inputs)
        raise UsageError(f"--input-shape names {sorted(given)[0]!r}", f"the model's inputs are {known}")
    batches = {spec.shape[0] for spec in inputs}
    if not inputs:
        raise ModelError("the model has no inputs, so it cannot be scored")
    if len(batches) > 1:
        raise ModelError("the first sizes of the model's inputs differ, so they are no number of samples")
    return Interface(inputs, batches.pop())


def _spec(value: onnx.ValueInfoProto, given: tuple[int, ...] | None) -> InputSpec:
    tensor = value.type.tensor_type
    if tensor.elem_type in NO_NUMBERS or not tensor.HasField("shape") or not tensor.shape.dim:
        raise ModelError(f"the model's input {value.name!r} has no shape or no numbers, so no data can be fed to it")
    shape = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    if given is not None:
        if len(given) != len(shape) or any(a not in (None, b) for a, b in zip(shape[1:], given[1:], strict=True)):
            raise UsageError(
                f"--input-shape does not fit the input {value.name!r}",
                f"it is {'x'.join('?' if size is None else str(size) for size in shape)}",
            )
        shape[1:] = given[1:]
    return InputSpec(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type), tuple(shape))


def _refuse_training(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        flagged = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        if node.op_type == "BatchNormalization" and (flagged or any(node.output[1:])):
            name = node.name or node.output[0]
            raise ModelError(f"the operator {name!r} is in training mode", "export the model in evaluation mode")
