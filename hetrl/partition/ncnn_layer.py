"""ncnn's files as values: layers with numbered parameters and weights, and how they are written.

The format: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure and
https://github.com/Tencent/ncnn/wiki/operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hetrl.errors import HetrlError

Array = npt.NDArray[Any]
Value = int | float | tuple[int, ...] | tuple[float, ...]
Params = dict[int, Value]

MAGIC = "7767517"
ARRAY_BASE = -23300  # arrays are written as -23300 - id
MASK_ID = 31
NO_VULKAN = 16  # https://github.com/Tencent/ncnn/wiki/layer-feat-mask
RAW_FLOAT32 = b"\0\0\0\0"  # the tag before weights that may be compressed


class Unconvertible(HetrlError):
    """ncnn has no layer for an operator, so that its group is not for ncnn.

    :param node: id of the operator: its first output tensor.
    :param reason: what ncnn lacks.
    """

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(f"ncnn cannot run {node!r}: {reason}", "place it on another engine")
        self.node = node
        self.reason = reason


@dataclass(frozen=True)
class Weight:
    """Numbers of a layer; `tagged` ones may be of other types, and say so."""

    data: Array
    tagged: bool = False

    def buffers(self) -> tuple[bytes | memoryview, ...]:
        """Its bytes, not copied where they are in order already."""
        numbers = np.ascontiguousarray(self.data, dtype="<f4").reshape(-1).data.cast("B")
        return (RAW_FLOAT32, numbers) if self.tagged else (numbers,)


@dataclass(frozen=True)
class Layer:
    """One line of a `.param` file.

    :param reads: blobs; `writes` likewise.
    :param nodes: ids of the ONNX operators that it does.
    """

    type: str
    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    params: Params
    weights: tuple[Weight, ...] = ()
    nodes: tuple[str, ...] = ()

    def line(self, mask: int = 0) -> str:
        """The layer as text; `mask` switches features off, such as `NO_VULKAN`."""
        params = {**self.params, MASK_ID: mask} if mask else self.params
        words = [self.type, self.name, str(len(self.reads)), str(len(self.writes)), *self.reads, *self.writes]
        return " ".join([*words, *(_parameter(number, params[number]) for number in sorted(params))])

    def encode_weights(self) -> bytes:
        """Its part of the `.bin` file."""
        return b"".join(buffer for weight in self.weights for buffer in weight.buffers())


def _parameter(number: int, value: Value) -> str:
    if isinstance(value, tuple):
        return f"{ARRAY_BASE - number}={','.join([str(len(value)), *map(_number, value)])}"
    return f"{number}={_number(value)}"


def _number(value: float) -> str:
    """A float must have an exponent or a point, or ncnn takes it for an int."""
    return f"{value:.9e}" if isinstance(value, float) else str(int(value))


def param_text(layers: Sequence[Layer], masks: Sequence[int] | None = None) -> str:
    """The `.param` file."""
    blobs = sum(len(layer.writes) for layer in layers)
    given = masks or [0] * len(layers)
    lines = (layer.line(mask) for layer, mask in zip(layers, given, strict=True))
    return "\n".join([MAGIC, f"{len(layers)} {blobs}", *lines, ""])


def with_splits(layers: Sequence[Layer], outputs: Sequence[str]) -> list[Layer]:
    """ncnn gives a blob to one reader only: where there are several, a Split hands out copies by reference.

    Blobs that leave the net keep their names.
    """
    readers = Counter([blob for layer in layers for blob in layer.reads] + list(outputs))
    shared = {blob for blob, count in readers.items() if count > 1}
    left: dict[str, list[str]] = {}
    done: list[Layer] = []
    for layer in layers:
        reads = tuple(left[blob].pop() if blob in shared else blob for blob in layer.reads)
        split = [blob for blob in layer.writes if blob in shared]
        # An Input's blob is where a runner puts data, so it must keep its name; all others are renamed if they leave.
        renamed = {blob: f"{blob}@whole" for blob in split if layer.type != "Input" and blob in outputs}
        done.append(replace(layer, reads=reads, writes=tuple(renamed.get(blob, blob) for blob in layer.writes)))
        for blob in split:
            copies = [f"{blob}@{number}" for number in range(readers[blob] - (blob in outputs))]
            left[blob] = copies[::-1]
            every = (*copies, blob) if blob in outputs else tuple(copies)
            done.append(Layer("Split", f"{blob}@split", (renamed.get(blob, blob),), every, {}, nodes=layer.nodes[-1:]))
    return done
