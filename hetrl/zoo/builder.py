"""A small builder of ONNX networks whose weights need not exist.

A network is first a `Blueprint`: an ONNX model that names its weights and their shapes as external data that no file
holds, a few kilobytes, enough for everything but running it. `Blueprint.with_weights` fills in seeded random weights,
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
from onnx import TensorProto, helper

OPSET = 17
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


class Builder:
    """Adds one layer per call; a method takes and returns tensor names, and knows every tensor's shape.

    A layer's tensors carry its name: the weights `<name>.weight` and `<name>.bias`, the output `<name>`.

    :param name: the network's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._weights: list[Weight] = []
        self._shapes: dict[str, tuple[int, ...]] = {}

    def input(self, name: str, shape: tuple[int, ...]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        self._shapes[name] = shape
        return name

    def shape(self, x: str) -> tuple[int, ...]:
        return self._shapes[x]

    def conv(  # noqa: PLR0913 a convolution has that many choices
        self,
        x: str,
        name: str,
        channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        pad: int | tuple[int, int] | None = None,
        groups: int = 1,
        bias: bool = True,
        gain: float = 1.0,
    ) -> str:
        """A 2-D convolution of `channels` outputs.

        :param pad: rows and columns on each side; None keeps the size at stride 1 (odd kernels).
        :param gain: factor on the He-scaled weights.
        """
        n, c, h, w = self.shape(x)
        kh, kw = _pair(kernel)
        ph, pw = ((kh - 1) // 2, (kw - 1) // 2) if pad is None else _pair(pad)
        operands = [x, self._weight(f"{name}.weight", (channels, c // groups, kh, kw), Fill.HE, gain)]
        if bias:
            operands.append(self._weight(f"{name}.bias", (channels,), Fill.SHIFT))
        node = helper.make_node(
            "Conv",
            operands,
            [name],
            name=name,
            kernel_shape=[kh, kw],
            strides=[stride, stride],
            pads=[ph, pw, ph, pw],
            group=groups,
        )
        out = (n, channels, (h + 2 * ph - kh) // stride + 1, (w + 2 * pw - kw) // stride + 1)
        return self._add(node, out)

    def batch_norm(self, x: str, name: str, *, gain: float = 1.0) -> str:
        """BatchNormalization in inference form: scale, bias, running mean and variance of each channel."""
        channels = (self.shape(x)[1],)
        operands = [
            x,
            self._weight(f"{name}.weight", channels, Fill.SCALE, gain),
            self._weight(f"{name}.bias", channels, Fill.SHIFT),
            self._weight(f"{name}.running_mean", channels, Fill.SHIFT),
            self._weight(f"{name}.running_var", channels, Fill.VARIANCE),
        ]
        return self._add(helper.make_node("BatchNormalization", operands, [name], name=name), self.shape(x))

    def gemm(self, x: str, name: str, features: int, *, gain: float = 1.0) -> str:
        """A dense layer on a 2-D tensor; the weight is stored as (outputs, inputs)."""
        rows, depth = self.shape(x)
        weight = self._weight(f"{name}.weight", (features, depth), Fill.HE, gain)
        bias = self._weight(f"{name}.bias", (features,), Fill.SHIFT)
        return self._add(helper.make_node("Gemm", [x, weight, bias], [name], name=name, transB=1), (rows, features))

    def activation(self, x: str, name: str, op_type: str = "Relu") -> str:
        """Any operator of one input without attributes that keeps the shape: Relu, Sigmoid, HardSwish, ..."""
        return self._add(helper.make_node(op_type, [x], [name], name=name), self.shape(x))

    def max_pool(self, x: str, name: str, kernel: int, stride: int, *, pad: int = 0, ceil: bool = False) -> str:
        return self._pool("MaxPool", x, name, kernel, stride, pad, ceil)

    def average_pool(self, x: str, name: str, kernel: int, stride: int, *, pad: int = 0, ceil: bool = False) -> str:
        return self._pool("AveragePool", x, name, kernel, stride, pad, ceil)

    def global_pool(self, x: str, name: str) -> str:
        """The mean over height and width, which stay as sizes of 1."""
        return self._add(helper.make_node("GlobalAveragePool", [x], [name], name=name), (*self.shape(x)[:2], 1, 1))

    def add(self, x: str, y: str, name: str) -> str:
        return self._add(helper.make_node("Add", [x, y], [name], name=name), self.shape(x))

    def concat(self, parts: list[str], name: str) -> str:
        """Joins along the channels."""
        n, _, *rest = self.shape(parts[0])
        channels = sum(self.shape(part)[1] for part in parts)
        return self._add(helper.make_node("Concat", parts, [name], name=name, axis=1), (n, channels, *rest))

    def flatten(self, x: str, name: str) -> str:
        n, *rest = self.shape(x)
        return self._add(helper.make_node("Flatten", [x], [name], name=name, axis=1), (n, math.prod(rest)))

    def finish(self, *outputs: str) -> Blueprint:
        """The network with these tensors as its outputs."""
        graph = helper.make_graph(
            self._nodes,
            self._name,
            self._inputs,
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, self.shape(o)) for o in outputs],
            [_external(weight) for weight in self._weights],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="hetrl"
        )
        return Blueprint(model, tuple(self._weights))

    def _pool(self, op_type: str, x: str, name: str, kernel: int, stride: int, pad: int, ceil: bool) -> str:
        n, c, h, w = self.shape(x)
        node = helper.make_node(
            op_type,
            [x],
            [name],
            name=name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            ceil_mode=int(ceil),
        )
        round_up = stride - 1 if ceil else 0
        out_h, out_w = ((size + 2 * pad - kernel + round_up) // stride + 1 for size in (h, w))
        return self._add(node, (n, c, out_h, out_w))

    def _weight(self, name: str, shape: tuple[int, ...], fill: Fill, gain: float = 1.0) -> str:
        self._weights.append(Weight(name, shape, fill, gain))
        return name

    def _add(self, node: onnx.NodeProto, shape: tuple[int, ...]) -> str:
        output = str(node.output[0])
        self._nodes.append(node)
        self._shapes[output] = shape
        return output


def _external(weight: Weight) -> TensorProto:
    tensor = TensorProto(name=weight.name, data_type=TensorProto.FLOAT, dims=weight.shape)
    _set_external(tensor, location=_ABSENT)
    return tensor


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
