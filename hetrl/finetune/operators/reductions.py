"""Reductions over axes, and softmax."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from hetrl.finetune.node import Call, Operator, Operators

FIRST_SOFTMAX_BY_AXIS = 13  # before this opset, softmax flattened its input to two axes
Reduction = Callable[[Tensor, list[int], bool], Tensor]


def reduction(function: Reduction) -> Operator:
    """Axes as attribute or operand; without any, over all of them, or over none if the node says so."""

    def reduce(call: Call) -> Tensor:
        axes = call.axes(call.x.ndim)
        if not axes:
            if call.node.integer("noop_with_empty_axes", 0):
                return call.x
            axes = list(range(call.x.ndim))
        return function(call.x, axes, bool(call.node.integer("keepdims", 1)))

    return reduce


def product(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


def arg(function: Callable[..., Tensor]) -> Operator:
    def find(call: Call) -> Tensor:
        if call.node.integer("select_last_index", 0):
            raise call.refuse("select_last_index")
        return function(call.x, call.axis(0), keepdim=bool(call.node.integer("keepdims", 1)))

    return find


def softmax(function: Callable[[Tensor, int], Tensor]) -> Operator:
    def apply(call: Call) -> Tensor:
        if call.node.opset >= FIRST_SOFTMAX_BY_AXIS:
            return function(call.x, call.axis(-1))
        axis = call.axis(1)
        return function(call.x.flatten(axis) if axis < call.x.ndim else call.x, axis).reshape(call.x.shape)

    return apply


def cumulative_sum(call: Call) -> Tensor:
    axis = int(call.tensor(1)) % call.x.ndim
    x = call.x.flip(axis) if call.node.integer("reverse", 0) else call.x
    total = x.cumsum(axis)
    total = total - x if call.node.integer("exclusive", 0) else total
    return total.flip(axis) if call.node.integer("reverse", 0) else total


def top_k(call: Call) -> tuple[Tensor, ...]:
    count = int(call.tensor(1))
    largest, ordered = bool(call.node.integer("largest", 1)), bool(call.node.integer("sorted", 1))
    values, indices = call.x.topk(count, call.axis(-1), largest, ordered)
    return values, indices


OPERATORS: Operators = {
    "ReduceL1": reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    "ReduceLogSum": reduction(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": reduction(lambda x, axes, keep: x.logsumexp(axes, keep)),
    "ReduceMax": reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceProd": reduction(product),
    "ReduceSum": reduction(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceSumSquare": reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "ArgMax": arg(torch.argmax),
    "ArgMin": arg(torch.argmin),
    "Softmax": softmax(functools.partial(torch.softmax)),
    "LogSoftmax": softmax(functools.partial(torch.log_softmax)),
    "CumSum": cumulative_sum,
    "TopK": top_k,
}
