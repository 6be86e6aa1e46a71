"""Operators as the loop nests that cost models see.

Windowed operators (convolutions, pools) in 2-D are taken as they are. In 1-D the length is the *height* and the width
is 1. In 3-D the depth is folded into the batch (output depth), so that only height and width remain.
Products have no spatial extent: the batch is the number of rows, `in_channels` what is summed over, `out_channels` the
columns of the result. All other operators show their tensors as NCHW, padded with ones on the right (a 3-D tensor is
batch, channels, height), everything beyond four dimensions folded into the height.
"""

from __future__ import annotations

import math

from hetrl.graph.kinds import weight_position
from hetrl.graph.model import Geometry, OpKind
from hetrl.graph.operator import Operand, Operator

_WINDOWED = frozenset({OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.POOL})


def geometry(operator: Operator) -> Geometry:
    """The shape of an operator's work."""
    if operator.kind in _WINDOWED and len(operator.out.shape) in (3, 4, 5):
        return _windowed(operator)
    if operator.kind in (OpKind.GEMM, OpKind.MATMUL):
        return _product(operator)
    source = operator.activations[0] if operator.activations else operator.out
    _, c, h, w = _nchw(source.shape)
    out_n, out_c, out_h, out_w = _nchw(operator.out.shape)
    pools = operator.kind is OpKind.GLOBAL_POOL
    return Geometry(
        kind=operator.kind,
        batch=out_n,
        in_channels=c,
        in_h=h,
        in_w=w,
        out_channels=out_c,
        out_h=out_h,
        out_w=out_w,
        kernel_h=h if pools else 1,
        kernel_w=w if pools else 1,
    )


def _nchw(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    if len(shape) > 4:
        return shape[0], shape[1], math.prod(shape[2:-1]), shape[-1]
    n, c, h, w = (*shape, 1, 1, 1, 1)[:4] if len(shape) != 1 else (1, shape[0], 1, 1)
    return n, c, h, w


def _windowed(operator: Operator) -> Geometry:
    source, out = _data(operator).shape, operator.out.shape
    rank = len(out) - 2
    kernel = _window(operator, rank)
    ones = (1,) * rank
    strides = operator.attributes.integers("strides", ones)
    dilations = operator.attributes.integers("dilations", ones)
    before, after = _padding(operator, kernel, strides, dilations)
    groups = operator.attributes.integer("group", 1) if operator.kind is not OpKind.POOL else 1
    in_h, in_w = _plane(source[2:])
    out_h, out_w = _plane(out[2:])
    kernel_h, kernel_w = _plane(kernel)
    stride_h, stride_w = _plane(strides)
    dilation_h, dilation_w = _plane(dilations)
    pad_top, pad_left = _plane(before, fill=0)
    pad_bottom, pad_right = _plane(after, fill=0)
    return Geometry(
        kind=operator.kind,
        batch=out[0] * (out[2] if rank == 3 else 1),
        in_channels=source[1],
        in_h=in_h,
        in_w=in_w,
        out_channels=out[1],
        out_h=out_h,
        out_w=out_w,
        kernel_h=kernel_h,
        kernel_w=kernel_w,
        stride_h=stride_h,
        stride_w=stride_w,
        dilation_h=dilation_h,
        dilation_w=dilation_w,
        pad_top=pad_top,
        pad_bottom=pad_bottom,
        pad_left=pad_left,
        pad_right=pad_right,
        groups=groups,
    )


def _data(operator: Operator) -> Operand:
    """The first operand, constant or not."""
    return operator.operands[0] or operator.out


def _plane(sizes: tuple[int, ...], fill: int = 1) -> tuple[int, int]:
    """Height and width of 1-D (the height), 2-D and 3-D sizes (the last two)."""
    return (sizes[0], fill) if len(sizes) == 1 else (sizes[-2], sizes[-1])


def _window(operator: Operator, rank: int) -> tuple[int, ...]:
    kernel = operator.attributes.integers("kernel_shape", ())
    weight = operator.operand(weight_position(operator.op_type))
    if not kernel and weight is not None:
        kernel = weight.shape[2:]
    return kernel if len(kernel) == rank else (1,) * rank


def kernel_elements(operator: Operator) -> int:
    """Positions of a windowed operator's kernel, depth included."""
    return math.prod(_window(operator, len(operator.out.shape) - 2))


def _padding(
    operator: Operator, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and after each spatial axis.

    What SAME_* and a transposed convolution's output_shape leave open follows from the output's size. A pool that
    rounds up (ceil_mode) reads past its padding: the rows that it lacks count as padding after.
    """
    source, out = _data(operator).shape[2:], operator.out.shape[2:]
    rank = len(kernel)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto = operator.attributes.text("auto_pad", "NOTSET")
    transposed = operator.kind is OpKind.CONV_TRANSPOSE
    if transposed and (auto.startswith("SAME") or operator.attributes.integers("output_shape", ())):
        extra = operator.attributes.integers("output_padding", (0,) * rank)
        total = [(s - 1) * t + r + e - o for s, t, r, e, o in zip(source, strides, reach, extra, out, strict=True)]
        return _halves([max(t, 0) for t in total], first_smaller=auto != "SAME_UPPER")
    if auto.startswith("SAME"):
        total = [max((o - 1) * t + r - s, 0) for s, t, r, o in zip(source, strides, reach, out, strict=True)]
        return _halves(total, first_smaller=auto == "SAME_UPPER")
    pads = operator.attributes.integers("pads", (0,) * 2 * rank) if auto == "NOTSET" else (0,) * 2 * rank
    before, after = pads[:rank], pads[rank:]
    if operator.kind is OpKind.POOL:
        lack = [(o - 1) * t + r - (s + b) for o, t, r, s, b in zip(out, strides, reach, source, before, strict=True)]
        after = tuple(max(a, size) for a, size in zip(after, lack, strict=True))
    return before, after


def _halves(total: list[int], *, first_smaller: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    small = tuple(t // 2 for t in total)
    large = tuple(t - t // 2 for t in total)
    return (small, large) if first_smaller else (large, small)


def _product(operator: Operator) -> Geometry:
    if operator.op_type in ("LSTM", "GRU", "RNN"):
        rows, depth, columns = _recurrent(operator)
    elif operator.op_type == "Einsum":
        rows, depth, columns = _einsum(operator)
    elif operator.op_type == "Attention":
        rows, depth, columns = _attention(operator)
    else:
        depth = _depth(operator)
        columns = operator.out.shape[-1] if _right(operator).shape[1:] else 1
        rows = operator.out.elements // max(columns, 1)
    return Geometry(kind=operator.kind, batch=rows, in_channels=depth, out_channels=columns)


def _right(operator: Operator) -> Operand:
    factor = operator.operand(weight_position(operator.op_type))
    return factor if factor is not None else operator.out


def _depth(operator: Operator) -> int:
    left = operator.operands[0]
    if left is None:
        return 1
    if operator.op_type == "Gemm" and operator.attributes.integer("transA", 0):
        return left.shape[0]
    return left.shape[-1]


def _recurrent(operator: Operator) -> tuple[int, int, int]:
    """Rows (steps times batch), inputs plus hidden state, gates of all directions."""
    data, weights = operator.operands[0], operator.operand(1)
    if data is None or weights is None:
        return 1, 1, operator.out.elements
    hidden = operator.attributes.integer("hidden_size", 1)
    return data.elements // max(data.shape[-1], 1), data.shape[-1] + hidden, math.prod(weights.shape[:2])


def _einsum(operator: Operator) -> tuple[int, int, int]:
    """All indices of the equation, those that are summed over as the depth."""
    equation = operator.attributes.text("equation", "").replace(" ", "")
    sizes: dict[str, int] = {}
    for term, operand in zip(equation.split("->")[0].split(","), operator.operands, strict=False):
        if operand is not None and len(term) == len(operand.shape):
            sizes |= dict(zip(term, operand.shape, strict=True))
    columns = operator.out.shape[-1] if operator.out.shape else 1
    depth = max(math.prod(sizes.values()) // max(operator.out.elements, 1), 1)
    return operator.out.elements // max(columns, 1), depth, columns


def _attention(operator: Operator) -> tuple[int, int, int]:
    """Every element of the query against every key: both products together are rows x depth x 2 columns."""
    query, key = operator.operands[0], operator.operand(1)
    if query is None or key is None:
        return 1, 1, operator.out.elements
    heads = operator.attributes.integer("q_num_heads", 1) if len(query.shape) == 3 else query.shape[1]
    rows = query.shape[0] * heads * query.shape[-2]
    return rows, query.elements // max(rows, 1), 2 * key.shape[-2]
