"""The data that a model is fine-tuned on, checked against the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from hetrl.errors import UsageError
from hetrl.finetune.settings import Loss
from hetrl.graph.wiring import constant_names

Array = NDArray[np.generic]
FEWEST = 4


@dataclass(frozen=True)
class Samples:
    """Inputs by position, with the samples first, and their labels.

    :param labels: integers for cross-entropy, floats for targets, None where the teacher alone says what is right.
    """

    inputs: tuple[Array, ...]
    labels: Array | None
    loss: Loss

    @property
    def count(self) -> int:
        return len(self.inputs[0])

    def parts(self, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices for training and for validation, the same for the same seed."""
        order = np.random.default_rng([seed, self.count]).permutation(self.count)
        held = min(max(1, round(share * self.count)), self.count // 2)
        return np.sort(order[held:]), np.sort(order[:held])


def read_samples(
    model: onnx.ModelProto, inputs: Array | Mapping[str, Array], labels: Array | None, loss: Loss | None
) -> Samples:
    """What `finetune` is given, as `Samples`.

    :param loss: None takes integers for classes and floats for targets.
    :raises UsageError: names, counts, shapes or types that do not fit the model or each other; numbers that are not
        finite.
    """
    constants = constant_names(model.graph)
    declared = [info for info in model.graph.input if info.name not in constants]
    names = [info.name for info in declared]
    if not isinstance(inputs, Mapping):
        if len(names) != 1:
            raise UsageError(f"the model has the inputs {', '.join(names)}", "give an array for each by name")
        inputs = {names[0]: inputs}
    if set(inputs) != set(names):
        raise UsageError(f"the data are for {', '.join(sorted(inputs))}", f"the model's inputs are {', '.join(names)}")
    arrays = tuple(_checked_input(info, np.asarray(inputs[info.name])) for info in declared)
    counts = {len(array) for array in arrays} | ({len(labels)} if labels is not None else set())
    if len(counts) > 1:
        raise UsageError(f"inputs and labels are of different numbers: {', '.join(map(str, sorted(counts)))}")
    if arrays[0].shape[0] < FEWEST:
        raise UsageError(f"{len(arrays[0])} samples are too few to train and validate", f"give {FEWEST} or more")
    kind = loss or (Loss.CROSS_ENTROPY if labels is not None and labels.dtype.kind in "iu" else Loss.MSE)
    return Samples(arrays, None if labels is None else _checked_labels(np.asarray(labels), kind), kind)


def _checked_input(info: onnx.ValueInfoProto, array: Array) -> Array:
    wanted_type = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    sizes = [dim.dim_value or None for dim in info.type.tensor_type.shape.dim]
    fits = array.ndim == len(sizes) and all(
        want in (None, have) for want, have in zip(sizes[1:], array.shape[1:], strict=True)
    )
    if not fits:
        wanted = "x".join("N" if size is None or axis == 0 else str(size) for axis, size in enumerate(sizes))
        shape = "x".join(map(str, array.shape))
        raise UsageError(f"samples of the shape {shape} do not fit the input {info.name!r}", f"it wants {wanted}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(f"the samples for the input {info.name!r} have numbers that are NaN or infinite")
    if not np.can_cast(array.dtype, wanted_type, "same_kind"):
        raise UsageError(
            f"samples of the type {array.dtype} do not fit the input {info.name!r}", f"it is {wanted_type}"
        )
    return array.astype(wanted_type)


def _checked_labels(labels: Array, loss: Loss) -> Array:
    if loss is Loss.CROSS_ENTROPY:
        if labels.dtype.kind not in "iu":
            raise UsageError(f"labels of the type {labels.dtype} are no classes", "give integers, or choose mse")
        return labels.astype(np.int64)
    targets = labels.astype(np.float32)
    if not np.isfinite(targets).all():
        raise UsageError("the targets have numbers that are NaN or infinite")
    return targets
