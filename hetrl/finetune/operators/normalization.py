"""Normalizations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hetrl.finetune.node import Call, Operators

FIRST_PER_CHANNEL_GROUP_NORM = 21  # before this opset, GroupNormalization had one scale per group


def batch_norm(call: Call) -> Tensor:
    """With batch statistics, the running ones are updated in place, as torch does.

    ONNX's momentum is what stays of the running value, torch's what comes in from the batch.
    """
    if call.node.integer("training_mode", 0):
        raise call.refuse("BatchNormalization in training mode")
    scale, bias, mean, variance = (call.tensor(position) for position in range(1, 5))
    momentum, epsilon = 1 - call.node.number("momentum", 0.9), call.node.number("epsilon", 1e-5)
    return F.batch_norm(call.x, mean, variance, scale, bias, call.batch_statistics, momentum, epsilon)


def instance_norm(call: Call) -> Tensor:
    return F.instance_norm(call.x, weight=call.tensor(1), bias=call.tensor(2), eps=call.node.number("epsilon", 1e-5))


def layer_norm(call: Call) -> Tensor:
    _one_output(call)
    axis = call.axis(-1)
    centred = call.x - call.x.mean(tuple(range(axis, call.x.ndim)), keepdim=True)
    return _scaled(call, centred, axis)


def rms_norm(call: Call) -> Tensor:
    return _scaled(call, call.x, call.axis(-1))


def _scaled(call: Call, x: Tensor, axis: int) -> Tensor:
    square = x.square().mean(tuple(range(axis, x.ndim)), keepdim=True)
    normal = x * torch.rsqrt(square + call.node.number("epsilon", 1e-5)) * call.tensor(1)
    bias = call.optional(2)
    return normal if bias is None else normal + bias


def group_norm(call: Call) -> Tensor:
    groups = call.node.integer("num_groups", 1)
    normal = F.group_norm(call.x, groups, eps=call.node.number("epsilon", 1e-5))
    channels = call.x.shape[1]
    shape = (-1, *[1] * (call.x.ndim - 2))
    scale, bias = call.tensor(1), call.tensor(2)
    if call.node.opset < FIRST_PER_CHANNEL_GROUP_NORM:
        scale, bias = (t.repeat_interleave(channels // groups) for t in (scale, bias))
    return normal * scale.reshape(shape) + bias.reshape(shape)


def local_response_norm(call: Call) -> Tensor:
    size = call.node.integer("size", 1)
    alpha, beta = call.node.number("alpha", 1e-4), call.node.number("beta", 0.75)
    before = (size - 1) // 2
    spatial = [0, 0] * (call.x.ndim - 2)
    squares = F.pad(call.x.square(), [*spatial, before, size - 1 - before])
    total = sum((squares.narrow(1, i, call.x.shape[1]) for i in range(1, size)), squares.narrow(1, 0, call.x.shape[1]))
    return call.x / (call.node.number("bias", 1.0) + alpha / size * total) ** beta


def lp_norm(call: Call) -> Tensor:
    return F.normalize(call.x, p=call.node.integer("p", 2), dim=call.axis(-1))


def mean_variance(call: Call) -> Tensor:
    axes = call.node.integers("axes") or [0, 2, 3]
    centred = call.x - call.x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


def _one_output(call: Call) -> None:
    if any(call.node.outputs[1:]):
        raise call.refuse("an output for mean or deviation")


OPERATORS: Operators = {
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "GroupNormalization": group_norm,
    "LRN": local_response_norm,
    "LpNormalization": lp_norm,
    "MeanVarianceNormalization": mean_variance,
}
