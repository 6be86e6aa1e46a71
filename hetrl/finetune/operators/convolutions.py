"""Conv and ConvTranspose in one to three dimensions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hetrl.finetune.node import Call, Operators
from hetrl.finetune.operators.windows import Window, shared, torch_pads, window

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv(call: Call) -> Tensor:
    weight, bias = call.tensor(1), call.optional(2)
    rank = weight.ndim - 2
    if rank not in _CONVOLUTIONS:
        raise call.refuse(f"a convolution over {rank} axes")
    w = window(call, weight.shape[2:])
    groups = call.node.integer("group", 1)
    x, padding = call.x, tuple(begin for begin, _ in w.pads)
    if any(begin != end for begin, end in w.pads):
        x, padding = F.pad(x, torch_pads(w.pads)), (0,) * rank
    return _CONVOLUTIONS[rank](x, weight, bias, w.strides, padding, w.dilations, groups)


def conv_transpose(call: Call) -> Tensor:
    """Computed without padding, then cut: pads may differ at both ends, output padding may exceed the stride."""
    weight, bias = call.tensor(1), call.optional(2)
    rank = weight.ndim - 2
    if rank not in _TRANSPOSED:
        raise call.refuse(f"a transposed convolution over {rank} axes")
    w = window(call, weight.shape[2:])
    extra = call.node.integers("output_padding") or [0] * rank
    whole = _TRANSPOSED[rank](call.x, weight, None, w.strides, 0, 0, call.node.integer("group", 1), w.dilations)
    cuts = tuple((-begin, more - end) for (begin, end), more in zip(_cuts(call, w, extra), extra, strict=True))
    cut = F.pad(whole, torch_pads(cuts))
    return cut if bias is None else cut + bias.reshape(-1, *[1] * rank)


def _cuts(call: Call, w: Window, extra: list[int]) -> tuple[tuple[int, int], ...]:
    """What the pads take away at each end: as given, or what leads to the wanted size."""
    mode = call.node.text("auto_pad", "NOTSET")
    sizes = call.x.shape[2:]
    wanted = call.node.integers("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(sizes, w.strides, strict=True)]
    if wanted is None:
        return w.pads
    full = [(n - 1) * s + e + m for n, s, e, m in zip(sizes, w.strides, w.extents, extra, strict=True)]
    return tuple(
        shared(have - want, upper=mode == "SAME_UPPER") for have, want in zip(full, wanted[-len(full) :], strict=True)
    )


OPERATORS: Operators = {"Conv": conv, "ConvTranspose": conv_transpose}
