"""A network without weights, and how to draw them.

A `Blueprint` is an ONNX model that names its weights and their shapes as external data that no file holds, a few
kilobytes, enough for everything but running it. `Blueprint.with_weights` fills in seeded random weights,
`Blueprint.save` streams them to a file next to the model, one tensor in memory at a time.
"""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

_ABSENT = "weights-not-included"


class Fill(StrEnum):
    """How a seeded weight is drawn."""

    HE = "he"  # normal, variance 2 / fan-in: keeps the mean square through a layer and the Relu behind it
    SCALE = "scale"  # normal around the gain, 5 % of it wide: a BatchNormalization's scale
    SHIFT = "shift"  # normal around 0, 0.05 wide: biases, running means
    VARIANCE = "variance"  # uniform in 0.9 to 1.1: running variances


class Weight(msgspec.Struct, frozen=True):
    """A float32 tensor of parameters that can be drawn at any time, in any order."""

    name: str
    shape: tuple[int, ...]
    fill: Fill
    gain: float

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def draw(self, seed: int, index: int) -> NDArray[np.float32]:
        """The numbers, the same for the same seed and index on every machine."""
        random = np.random.Generator(np.random.PCG64([seed, index]))
        if self.fill is Fill.VARIANCE:
            return random.uniform(0.9, 1.1, self.shape).astype(np.float32)
        numbers = random.standard_normal(self.shape, dtype=np.float32)
        if self.fill is Fill.HE:
            return numbers * np.float32(self.gain * math.sqrt(2 / math.prod(self.shape[1:])))
        if self.fill is Fill.SCALE:
            return np.float32(self.gain) * (1 + np.float32(0.05) * numbers)
        return np.float32(0.05) * numbers


def absent(weight: Weight) -> TensorProto:
    """The initializer of a weight that is not there."""
    tensor = TensorProto(name=weight.name, data_type=TensorProto.FLOAT, dims=weight.shape)
    _set_external(tensor, location=_ABSENT)
    return tensor


class Blueprint(msgspec.Struct, frozen=True):
    """A network without weights, and how to draw them.

    :param model: the ONNX model; its initializers are external data that do not exist.
    :param weights: one per initializer, in the same order.
    """

    model: onnx.ModelProto
    weights: tuple[Weight, ...]

    def with_weights(self, seed: int) -> onnx.ModelProto:
        """The model with weights inline; it takes 4 bytes per parameter."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for index, (tensor, weight) in enumerate(zip(model.graph.initializer, self.weights, strict=True)):
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = _little_endian(weight.draw(seed, index))
        return model

    def save(self, path: Path, seed: int | None) -> None:
        """Write the model to `path`; with a seed, its weights to the file `<name>.weights` next to it."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        if seed is not None:
            file = path.with_name(f"{path.name}.weights")
            with file.open("wb") as stream:
                for index, (tensor, weight) in enumerate(zip(model.graph.initializer, self.weights, strict=True)):
                    offset = stream.tell()
                    length = stream.write(_little_endian(weight.draw(seed, index)))
                    _set_external(tensor, location=file.name, offset=offset, length=length)
        path.write_bytes(model.SerializeToString(deterministic=True))


def _little_endian(numbers: NDArray[np.float32]) -> bytes:
    return numbers.astype("<f4", copy=False).tobytes()


def _set_external(tensor: TensorProto, **entries: str | int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
