"""Operators with weights or windows in ncnn: convolutions, dense layers, pools, normalizations."""

from __future__ import annotations

import numpy as np

from hetrl.device_bridge.runner.engines.ncnn import blob_name
from hetrl.partition.ncnn_layer import Array, Layer, Params, Weight
from hetrl.partition.ncnn_scope import Scope, Window, reshape

MAX_POOL, AVERAGE_POOL = 0, 1
PAD_AS_GIVEN = 1  # of a pool: no window that sticks out behind the pads
MEAN = 3  # of a Reduction


def conv(scope: Scope) -> list[Layer]:
    scope.map_size(scope.node.input[0])
    weight = scope.weights(1, "weight")
    groups = scope.integer("group", 1)
    params, weights = _kernel(scope, scope.window(weight.shape[2:]), weight, len(weight), groups)
    return [scope.layer("Convolution" if groups == 1 else "ConvolutionDepthWise", params, *weights)]


def conv_transpose(scope: Scope) -> list[Layer]:
    scope.map_size(scope.node.input[0])
    weight = scope.weights(1, "weight")  # (inputs, outputs / groups, h, w)
    groups = scope.integer("group", 1)
    window = scope.window(weight.shape[2:])
    if scope.word("auto_pad", "NOTSET") != "NOTSET" or scope.integers("output_shape") is not None:
        raise scope.refuse("gives its output's shape instead of pads")
    inputs, outputs, *kernel = weight.shape
    by_group = weight.reshape(groups, inputs // groups, outputs, *kernel).swapaxes(1, 2)
    swapped = by_group.reshape(groups * outputs, inputs // groups, *kernel)
    params, weights = _kernel(scope, window, swapped, groups * outputs, groups)
    bottom, right = scope.integers("output_padding") or (0, 0)
    params |= {18: right, 19: bottom}
    return [scope.layer("Deconvolution" if groups == 1 else "DeconvolutionDepthWise", params, *weights)]


def _kernel(
    scope: Scope, window: Window, weight: Array, outputs: int, groups: int
) -> tuple[Params, tuple[Weight, ...]]:
    (h, w), (stride_h, stride_w), (dilation_h, dilation_w) = window.kernel, window.strides, window.dilations
    top, left, bottom, right = window.pads
    params: Params = {
        0: outputs, 1: w, 11: h, 2: dilation_w, 12: dilation_h, 3: stride_w, 13: stride_h,
        4: left, 14: top, 15: right, 16: bottom, 5: int(scope.has(2)), 6: weight.size,
    }  # fmt: skip
    if groups > 1:
        params[7] = groups
    bias = (Weight(scope.weights(2, "bias")),) if scope.has(2) else ()
    return params, (Weight(weight, tagged=True), *bias)


def gemm(scope: Scope) -> list[Layer]:
    """A dense layer on one row."""
    if scope.integer("transA", 0) or len(scope.shape_in) != 1:
        raise scope.refuse("its first operand is no row")
    weight = scope.weights(1, "weight")
    weight = _scaled(weight if scope.integer("transB", 0) else weight.T, scope.number("alpha", 1.0))
    bias = _scaled(scope.weights(2, "bias"), scope.number("beta", 1.0)) if scope.has(2) else None
    return [_dense(scope, weight, bias)]


def _scaled(weight: Array, factor: float) -> Array:
    return weight if factor == 1 else weight * np.float32(factor)


def matmul(scope: Scope) -> list[Layer]:
    weight = scope.constant(1)
    if weight is not None:
        if weight.ndim != 2 or len(scope.shape_in) > 2:
            raise scope.refuse("multiplies a stack of matrices by constants")
        return [_dense(scope, weight.T, None)]
    left, right = (scope.inner(name) for name in scope.node.input)
    if scope.constant(0) is not None or len(left) != len(right) or len(left) < 2 or left[:-2] != right[:-2]:
        raise scope.refuse("its operands are not two stacks of matrices of one size")
    names = blob_name(scope.node.input[0]), blob_name(scope.node.input[1])
    return [Layer("MatMul", blob_name(scope.id), names, (blob_name(scope.id),), {}, (), (scope.id,))]


def _dense(scope: Scope, weight: Array, bias: Array | None) -> Layer:
    """`weight` is (outputs, inputs)."""
    outputs = len(weight)
    params: Params = {0: outputs, 1: int(bias is not None), 2: weight.size}
    biases = () if bias is None else (Weight(np.broadcast_to(bias.reshape(-1), (outputs,))),)
    return scope.layer("InnerProduct", params, Weight(weight, tagged=True), *biases)


def pool(scope: Scope) -> list[Layer]:
    """A maximum or mean over windows; rows and columns that rounding up adds become pads."""
    average = scope.node.op_type == "AveragePool"
    if len([name for name in scope.node.output if name]) > 1:
        raise scope.refuse("also gives indices")
    _, *size = scope.map_size(scope.node.input[0])
    _, *out = scope.map_size(scope.id)
    window = scope.window(scope.integers("kernel_shape") or ())
    if window.dilations != (1, 1):
        raise scope.refuse("is dilated")
    top, left, bottom, right = window.pads
    needs = [
        (o - 1) * stride + k - s - p
        for o, stride, k, s, p in zip(out, window.strides, window.kernel, size, (top, left), strict=True)
    ]
    count_pads = average and bool(scope.integer("count_include_pad", 0))
    if count_pads and (needs[0] > bottom or needs[1] > right):
        raise scope.refuse("counts pads, and rounds its size up")
    params: Params = {
        0: AVERAGE_POOL if average else MAX_POOL, 1: window.kernel[1], 11: window.kernel[0],
        2: window.strides[1], 12: window.strides[0], 3: left, 13: top,
        14: max(right, needs[1]), 15: max(bottom, needs[0]), 5: PAD_AS_GIVEN, 6: int(count_pads),
    }  # fmt: skip
    return [scope.layer("Pooling", params)]


def global_pool(scope: Scope) -> list[Layer]:
    """ncnn's result is a row; the sizes of 1 come back by a Reshape."""
    kind = AVERAGE_POOL if scope.node.op_type == "GlobalAveragePool" else MAX_POOL
    channels, *_ = scope.map_size(scope.node.input[0])
    return _over_image(scope, kind, (channels, 1, 1))


def _over_image(scope: Scope, kind: int, out: tuple[int, ...]) -> list[Layer]:
    row, name = scope.side("row"), blob_name(scope.id)
    pooled = Layer("Pooling", row, (blob_name(scope.node.input[0]),), (row,), {0: kind, 4: 1}, (), (scope.id,))
    return [pooled, reshape(scope, row, name, out)]


def reduce(scope: Scope) -> list[Layer]:
    kinds = {"ReduceSum": 0, "ReduceMean": MEAN, "ReduceMax": 4, "ReduceMin": 5}
    rank = len(scope.shape_in) + 1
    given = scope.ints(1, "axes")
    if given is None:
        raise scope.refuse("works along the batch")
    axes = tuple(sorted(scope.axis(axis, rank) for axis in given))
    if scope.node.op_type == "ReduceMean" and rank == 4 and axes == (1, 2):
        return _over_image(scope, AVERAGE_POOL, scope.shape_out)
    keep = scope.integer("keepdims", 1)
    if not keep and len(axes) == rank - 1:
        raise scope.refuse("leaves a single number")
    params: Params = {0: kinds[scope.node.op_type], 1: 0, 3: axes, 4: keep, 5: 1}
    return [scope.layer("Reduction", params)]


def batch_norm(scope: Scope) -> list[Layer]:
    slope, bias, mean, variance = (scope.weights(i, "statistics") for i in (1, 2, 3, 4))
    params: Params = {0: len(slope), 1: scope.number("epsilon", 1e-5)}
    return [scope.layer("BatchNorm", params, *(Weight(w) for w in (slope, mean, variance, bias)))]


def instance_norm(scope: Scope) -> list[Layer]:
    """InstanceNorm is for maps; groups of one channel are the same for rows (torch exports group norms so)."""
    slope, bias, epsilon = scope.weights(1, "scale"), scope.weights(2, "bias"), scope.number("epsilon", 1e-5)
    if len(scope.shape_in) == 2:
        return [scope.layer("GroupNorm", {0: len(slope), 1: len(slope), 2: epsilon, 3: 1}, Weight(slope), Weight(bias))]
    scope.map_size(scope.node.input[0])
    return [scope.layer("InstanceNorm", {0: len(slope), 1: epsilon, 2: 1}, Weight(slope), Weight(bias))]


def group_norm(scope: Scope) -> list[Layer]:
    """ncnn has numbers for each channel, and so has ONNX since opset 21; before, for each group."""
    channels, groups = scope.shape_in[0], scope.integer("num_groups", 1)
    slope, bias = scope.weights(1, "scale"), scope.weights(2, "bias")
    if scope.opset < 21:
        slope, bias = (np.repeat(numbers, channels // groups) for numbers in (slope, bias))
    params: Params = {0: groups, 1: channels, 2: scope.number("epsilon", 1e-5), 3: 1}
    return [scope.layer("GroupNorm", params, Weight(slope), Weight(bias))]


def layer_norm(scope: Scope) -> list[Layer]:
    shape = scope.shape_in
    axis = scope.axis(scope.integer("axis", -1), len(shape) + 1)
    slope = scope.weights(1, "scale")
    if axis != len(shape) - 1 or len([n for n in scope.node.output if n]) > 1:
        raise scope.refuse("is over more than the last dimension, or gives its statistics")
    bias = scope.weights(2, "bias") if scope.has(2) else np.zeros_like(slope)
    params: Params = {0: shape[-1], 1: scope.number("epsilon", 1e-5), 2: 1}
    return [scope.layer("LayerNorm", params, Weight(slope.reshape(-1)), Weight(bias.reshape(-1)))]


def local_response_norm(scope: Scope) -> list[Layer]:
    values = {2: scope.number("alpha", 1e-4), 3: scope.number("beta", 0.75), 4: scope.number("bias", 1.0)}
    scope.map_size(scope.node.input[0])
    size = scope.integer("size", 1)
    if size % 2 == 0:
        raise scope.refuse(f"is over {size} channels, which no channel is in the middle of")
    return [scope.layer("LRN", {0: 0, 1: size, **values})]
