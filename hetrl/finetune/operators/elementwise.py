"""Operators that compute each element by itself."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor

from hetrl.finetune.node import Call, Operator, Operators

# Training computes in single precision: what a graph casts to a half type stays as it is.
_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def torch_type(code: int) -> torch.dtype:
    """The type that training uses for ONNX's."""
    if code in _HALVES:
        return torch.float32
    return torch.from_numpy(np.zeros(0, helper.tensor_dtype_to_np_dtype(code))).dtype


def unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda call: function(call.x)


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call: function(call.x, call.tensor(1))


def variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call: functools.reduce(function, call.present)


def with_alpha(function: Callable[[Tensor, float], Tensor], default: float) -> Operator:
    return lambda call: function(call.x, call.node.number("alpha", default))


def mean(call: Call) -> Tensor:
    return functools.reduce(torch.add, call.present) / len(call.present)


def divide(call: Call) -> Tensor:
    whole = not call.x.is_floating_point()
    return torch.div(call.x, call.tensor(1), rounding_mode="trunc" if whole else None)


def power(call: Call) -> Tensor:
    return torch.pow(call.x, call.tensor(1)).to(call.x.dtype)


def modulo(call: Call) -> Tensor:
    function = torch.fmod if call.node.integer("fmod", 0) else torch.remainder
    return function(call.x, call.tensor(1))


def clip(call: Call) -> Tensor:
    low: Tensor | float | None = call.optional(1)
    high: Tensor | float | None = call.optional(2)
    x = call.x
    if low is None and call.node.has("min"):
        low = call.node.number("min", 0.0)
    if high is None and call.node.has("max"):
        high = call.node.number("max", 0.0)
    x = x if low is None else torch.clamp(x, min=_number(low))
    return x if high is None else torch.clamp(x, max=_number(high))


def _number(value: Tensor | float) -> float:
    return value.item() if isinstance(value, Tensor) else value


def prelu(call: Call) -> Tensor:
    return torch.relu(call.x) + call.tensor(1) * torch.clamp(call.x, max=0)


def hard_sigmoid(call: Call) -> Tensor:
    return torch.clamp(call.node.number("alpha", 0.2) * call.x + call.node.number("beta", 0.5), 0, 1)


def selu(call: Call) -> Tensor:
    alpha = call.node.number("alpha", 1.67326319217681884765625)
    return call.node.number("gamma", 1.05070102214813232421875) * F.elu(call.x, alpha)


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def gelu(call: Call) -> Tensor:
    return F.gelu(call.x, approximate=call.node.text("approximate", "none"))


def swish(call: Call) -> Tensor:
    return call.x * torch.sigmoid(call.node.number("alpha", 1.0) * call.x)


def thresholded(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


def cast(call: Call) -> Tensor:
    return call.x.to(torch_type(call.node.integer("to", TensorProto.FLOAT)))


def cast_like(call: Call) -> Tensor:
    return call.x.to(call.tensor(1).dtype)


def where(call: Call) -> Tensor:
    return torch.where(call.x, call.tensor(1), call.tensor(2))


def dropout(call: Call) -> Tensor:
    """Drops in training, as it did when the network was trained first."""
    ratio = call.optional(1)
    share = call.node.number("ratio", 0.5) if ratio is None else float(ratio)
    return F.dropout(call.x, share, call.training)


OPERATORS: Operators = {
    "Abs": unary(torch.abs),
    "Ceil": unary(torch.ceil),
    "Cos": unary(torch.cos),
    "Erf": unary(torch.erf),
    "Exp": unary(torch.exp),
    "Floor": unary(torch.floor),
    "HardSwish": unary(F.hardswish),
    "Identity": unary(lambda x: x),
    "IsNaN": unary(torch.isnan),
    "Log": unary(torch.log),
    "Mish": unary(F.mish),
    "Neg": unary(torch.neg),
    "Not": unary(torch.logical_not),
    "Reciprocal": unary(torch.reciprocal),
    "Relu": unary(torch.relu),
    "Round": unary(torch.round),
    "Sigmoid": unary(torch.sigmoid),
    "Sign": unary(torch.sign),
    "Sin": unary(torch.sin),
    "Softplus": unary(softplus),
    "Softsign": unary(F.softsign),
    "Sqrt": unary(torch.sqrt),
    "Tanh": unary(torch.tanh),
    "Add": binary(torch.add),
    "And": binary(torch.logical_and),
    "Div": divide,
    "Equal": binary(torch.eq),
    "Greater": binary(torch.gt),
    "GreaterOrEqual": binary(torch.ge),
    "Less": binary(torch.lt),
    "LessOrEqual": binary(torch.le),
    "Mod": modulo,
    "Mul": binary(torch.mul),
    "Or": binary(torch.logical_or),
    "Pow": power,
    "Sub": binary(torch.sub),
    "Max": variadic(torch.maximum),
    "Mean": mean,
    "Min": variadic(torch.minimum),
    "Sum": variadic(torch.add),
    "Celu": with_alpha(F.celu, 1.0),
    "Elu": with_alpha(F.elu, 1.0),
    "LeakyRelu": with_alpha(F.leaky_relu, 0.01),
    "ThresholdedRelu": with_alpha(thresholded, 1.0),
    "Cast": cast,
    "CastLike": cast_like,
    "Clip": clip,
    "Dropout": dropout,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "PRelu": prelu,
    "Selu": selu,
    "Swish": swish,
    "Where": where,
}
