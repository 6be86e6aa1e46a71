"""A small builder of ONNX networks whose weights need not exist: it makes a `Blueprint`."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hetrl.zoo.blueprint import Blueprint, Fill, Weight, absent

__all__ = ["OPSET", "Blueprint", "Builder"]

OPSET = 17
Pads = int | tuple[int, int] | tuple[int, int, int, int]


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
        pad: Pads | None = None,
        groups: int = 1,
        bias: bool = True,
        gain: float = 1.0,
    ) -> str:
        """A 2-D convolution of `channels` outputs.

        :param pad: rows and columns on each side, or (top, left, bottom, right); None keeps the size at stride 1 (odd
            kernels).
        :param gain: factor on the He-scaled weights.
        """
        n, c, h, w = self.shape(x)
        kh, kw = _pair(kernel)
        top, left, bottom, right = _sides(((kh - 1) // 2, (kw - 1) // 2) if pad is None else pad)
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
            pads=[top, left, bottom, right],
            group=groups,
        )
        out = (n, channels, (h + top + bottom - kh) // stride + 1, (w + left + right - kw) // stride + 1)
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

    def activation(self, x: str, name: str, op_type: str = "Relu", *, alpha: float | None = None) -> str:
        """Any operator of one input that keeps the shape: Relu, LeakyRelu (`alpha`), Sigmoid, HardSwish, ..."""
        return self._add(helper.make_node(op_type, [x], [name], name=name, alpha=alpha), self.shape(x))

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

    def first_channels(self, x: str, name: str, channels: int) -> str:
        """A Slice: the first `channels` channels."""
        n, _, *rest = self.shape(x)
        bounds = [self._constant(f"{name}.{key}", [v]) for key, v in (("start", 0), ("end", channels), ("axis", 1))]
        return self._add(helper.make_node("Slice", [x, *bounds], [name], name=name), (n, channels, *rest))

    def enlarge(self, x: str, name: str, factor: int) -> str:
        """A Resize: every pixel `factor` times in height and width."""
        n, c, h, w = self.shape(x)
        scales = self._constant(f"{name}.scales", [1.0, 1.0, float(factor), float(factor)])
        node = helper.make_node(
            "Resize",
            [x, "", scales],
            [name],
            name=name,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        return self._add(node, (n, c, h * factor, w * factor))

    def zero_pad(self, x: str, name: str, pad: Pads) -> str:
        """A Pad: zeros around each channel."""
        n, c, h, w = self.shape(x)
        top, left, bottom, right = _sides(pad)
        pads = self._constant(f"{name}.pads", [0, 0, top, left, 0, 0, bottom, right])
        return self._add(
            helper.make_node("Pad", [x, pads], [name], name=name), (n, c, h + top + bottom, w + left + right)
        )

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
            [absent(weight) for weight in self._weights],
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

    def _constant(self, name: str, numbers: list[int] | list[float]) -> str:
        """Sizes and bounds: a Constant node, which every runtime folds and no operator graph counts."""
        kind = np.int64 if isinstance(numbers[0], int) else np.float32
        value = numpy_helper.from_array(np.array(numbers, dtype=kind))
        self._nodes.append(helper.make_node("Constant", [], [name], name=name, value=value))
        return name

    def _add(self, node: onnx.NodeProto, shape: tuple[int, ...]) -> str:
        output = str(node.output[0])
        self._nodes.append(node)
        self._shapes[output] = shape
        return output


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _sides(pads: Pads) -> tuple[int, int, int, int]:
    """Top, left, bottom, right."""
    if isinstance(pads, int):
        return pads, pads, pads, pads
    return pads if len(pads) == 4 else (*pads, *pads)
