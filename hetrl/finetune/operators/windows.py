"""Kernels, strides and pads of operators that move a window: convolutions and pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetrl.finetune.node import Call

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Window:
    """One number per spatial axis; `pads` are those at its begin and end."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: Pads

    @property
    def extents(self) -> tuple[int, ...]:
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def window(call: Call, kernel: Sequence[int]) -> Window:
    """The window of a node, with the pads that `auto_pad` means for its input."""
    node, rank = call.node, len(kernel)
    ones = (1,) * rank
    strides = tuple(node.integers("strides") or ones)
    dilations = tuple(node.integers("dilations") or ones)
    plain = Window(tuple(kernel), strides, dilations, ((0, 0),) * rank)
    mode = node.text("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        sizes = call.x.shape[2:]
        wanted = [
            max(0, (-(-size // s) - 1) * s + e - size) for size, s, e in zip(sizes, strides, plain.extents, strict=True)
        ]
        pads = tuple(shared(pad, upper=mode == "SAME_UPPER") for pad in wanted)
    elif mode == "VALID":
        pads = plain.pads
    else:
        given = node.integers("pads") or [0] * (2 * rank)
        pads = tuple(zip(given[:rank], given[rank:], strict=True))
    return Window(plain.kernel, strides, dilations, pads)


def shared(pad: int, *, upper: bool) -> tuple[int, int]:
    """A pad shared by both ends; the odd one goes to the end if `upper`."""
    small, large = pad // 2, pad - pad // 2
    return (small, large) if upper else (large, small)


def torch_pads(pads: Pads) -> list[int]:
    """What `torch.nn.functional.pad` wants: the last axis first."""
    return [size for pair in reversed(pads) for size in pair]
