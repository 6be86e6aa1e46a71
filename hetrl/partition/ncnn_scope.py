"""One ONNX operator as its conversion to ncnn sees it: attributes, shapes, constants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx
from onnx import helper

from hetrl.device_bridge.runner.engines.ncnn import blob_name
from hetrl.partition.ncnn_layer import Array, Layer, Params, Unconvertible, Weight

Shape = tuple[int, ...]
MAX_RANK = 4  # of an ncnn blob: w, h, d, c


@dataclass(frozen=True)
class Window:
    """A kernel over height and width; `pads` are top, left, bottom, right."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns from the first to the last that it sees."""
        return (self.kernel[0] - 1) * self.dilations[0] + 1, (self.kernel[1] - 1) * self.dilations[1] + 1


@dataclass(frozen=True)
class Scope:
    """An operator and what is known around it.

    :param shapes: shape of every tensor, where it is known.
    :param constants: tensors that do not change, by name.
    """

    node: onnx.NodeProto
    shapes: Mapping[str, Shape]
    constants: Mapping[str, Array]
    opset: int

    @property
    def id(self) -> str:
        name: str = next(name for name in self.node.output if name)
        return name

    def refuse(self, reason: str) -> Unconvertible:
        """To be raised."""
        return Unconvertible(self.id, f"{self.node.op_type}: {reason}")

    @cached_property
    def _attributes(self) -> dict[str, Any]:
        return {a.name: helper.get_attribute_value(a) for a in self.node.attribute}

    def integer(self, name: str, default: int) -> int:
        return int(self._attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        return float(self._attributes.get(name, default))

    def word(self, name: str, default: str) -> str:
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def integers(self, name: str) -> tuple[int, ...] | None:
        value = self._attributes.get(name)
        return None if value is None else tuple(int(v) for v in value)

    def has(self, index: int) -> bool:
        """Whether an optional input is there."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def constant(self, index: int) -> Array | None:
        """An input's value, None if it changes or is not there."""
        return self.constants.get(self.node.input[index]) if self.has(index) else None

    def weights(self, index: int, what: str) -> Array:
        """An input's value.

        :raises Unconvertible: it is made by another operator.
        """
        value = self.constant(index)
        if value is None:
            raise self.refuse(f"its {what} is not constant")
        return value

    def ints(self, index: int, name: str) -> tuple[int, ...] | None:
        """A list that is an attribute in old models and an input in new ones; None if it is not given.

        :raises Unconvertible: another operator makes it.
        """
        if self.has(index):
            return tuple(int(v) for v in self.weights(index, name).reshape(-1))
        return self.integers(name)

    def onnx_shape(self, name: str) -> Shape:
        """:raises Unconvertible: it is not known."""
        shape = self.shapes.get(name)
        if shape is None:
            raise self.refuse(f"the shape of {name!r} is not known")
        return shape

    def inner(self, name: str) -> Shape:
        """A tensor's shape in ncnn, outermost first: without the batch.

        :raises Unconvertible: it has a batch, or more dimensions than ncnn knows.
        """
        shape = self.onnx_shape(name)
        if len(shape) < 2:
            raise self.refuse(f"{name!r} has no batch dimension")
        if shape[0] != 1:
            raise self.refuse(f"{name!r} is of shape {'x'.join(map(str, shape))}; ncnn has no batch")
        if len(shape) > MAX_RANK + 1 or math.prod(shape) == 0:
            raise self.refuse(f"{name!r} is of shape {'x'.join(map(str, shape))}")
        return shape[1:]

    @property
    def shape_in(self) -> Shape:
        return self.inner(self.node.input[0])

    @property
    def shape_out(self) -> Shape:
        return self.inner(self.id)

    def axis(self, axis: int, rank: int) -> int:
        """An axis of a tensor of ONNX rank `rank`, as ncnn counts it.

        :raises Unconvertible: it is the batch.
        """
        axis = axis + rank if axis < 0 else axis
        if axis == 0:
            raise self.refuse("works along the batch")
        return axis - 1

    def map_size(self, name: str) -> tuple[int, int, int]:
        """Channels, height and width.

        :raises Unconvertible: it is no image.
        """
        shape = self.inner(name)
        if len(shape) != 3:
            raise self.refuse(f"works on {len(shape)} dimension(s), not on channels, height and width")
        return shape[0], shape[1], shape[2]

    def window(self, kernel: Shape) -> Window:
        """Kernel, strides, dilations and pads over height and width.

        :raises Unconvertible: it is not over two dimensions.
        """
        if len(kernel) != 2:
            raise self.refuse(f"has a window of {len(kernel)} dimension(s)")
        ones = (1, 1)
        strides, dilations = (self.integers(name) or ones for name in ("strides", "dilations"))
        window = Window((kernel[0], kernel[1]), (strides[0], strides[1]), (dilations[0], dilations[1]), (0, 0, 0, 0))
        top, left, bottom, right = self.integers("pads") or (0, 0, 0, 0)
        auto = self.word("auto_pad", "NOTSET")
        if auto.startswith("SAME"):
            sizes = zip(self.shape_in[-2:], self.shape_out[-2:], strides, window.reach, strict=True)
            spare = [max(0, (out - 1) * stride + reach - size) for size, out, stride, reach in sizes]
            less, more = [s // 2 for s in spare], [s - s // 2 for s in spare]
            first, last = (less, more) if auto == "SAME_UPPER" else (more, less)
            top, left, bottom, right = first[0], first[1], last[0], last[1]
        elif auto == "VALID":
            top = left = bottom = right = 0
        return Window(window.kernel, window.strides, window.dilations, (top, left, bottom, right))

    def layer(self, kind: str, params: Params | None = None, *weights: Weight) -> Layer:
        """A layer from the operator's first input to its first output."""
        read, own = blob_name(self.node.input[0]), blob_name(self.id)
        return Layer(kind, own, (read,), (own,), params or {}, weights, (self.id,))

    def side(self, what: str) -> str:
        """Name of a blob that is the operator's own affair."""
        return f"{blob_name(self.id)}@{what}"


def shape_params(shape: Shape) -> Params:
    """w, h, d and c of a blob, as Input, Reshape and MemoryData number them."""
    w, *more = shape[::-1]
    if len(more) < 3:
        return {0: w, **dict(zip((1, 2), more, strict=False))}
    return {0: w, 1: more[0], 11: more[1], 2: more[2]}


def reshape(scope: Scope, read: str, write: str, shape: Shape) -> Layer:
    """A layer that reads the same numbers as another shape."""
    return Layer("Reshape", write, (read,), (write,), shape_params(shape), (), (scope.id,))


def memory(scope: Scope, write: str, data: Array) -> Layer:
    """A layer that gives a constant."""
    return Layer("MemoryData", write, (), (write,), shape_params(data.shape), (Weight(data),), (scope.id,))
