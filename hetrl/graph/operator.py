"""One ONNX operator with every shape known: what geometry, costs and fusion are computed from. Free of ONNX."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

import msgspec

from hetrl.graph.model import OpKind

Value = int | float | str | tuple["Value", ...]

_BITS = {
    "bool": 8,
    "float32": 32,
    "float64": 64,
    "bfloat16": 16,
    "complex64": 64,
    "complex128": 128,
    "string": 64,  # a pointer: no mobile runtime gives strings a size
}


def dtype_bits(dtype: str) -> int:
    """Bits of one element of `dtype` (`float32`, `int8`, `uint4`, `float8e4m3fn`, ...); 32 for unheard-of ones."""
    if dtype in _BITS:
        return _BITS[dtype]
    digits = dtype.removeprefix("u").removeprefix("int").removeprefix("float")
    width = next((w for w in ("16", "32", "64", "8", "4", "2") if digits.startswith(w)), "32")
    return int(width)


def dtype_bytes(dtype: str, elements: int) -> int:
    """Bytes of that many elements; 4-bit types are packed two to a byte."""
    return (elements * dtype_bits(dtype) + 7) // 8


class Operand(msgspec.Struct, frozen=True):
    """A tensor that an operator reads or makes.

    :param constant: known before inference: a weight, or what is computed from weights and shapes.
    :param stored_bytes: what it takes in the model file (int8 for a weight that a DequantizeLinear widens).
    :param values: of a constant number or vector of integers (bounds, axes, indices); None for all else.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool
    stored_bytes: int
    values: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return dtype_bytes(self.dtype, self.elements)


class Attributes:
    """An operator's attributes; tensors and subgraphs are represented by a digest of their structure."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attributes) and self._values == other._values

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def has(self, name: str) -> bool:
        return name in self._values

    def with_integer(self, name: str, value: int) -> Attributes:
        return Attributes({**self._values, name: value})

    def integer(self, name: str, default: int) -> int:
        value = self._values.get(name, default)
        return value if isinstance(value, int) else default

    def text(self, name: str, default: str) -> str:
        value = self._values.get(name, default)
        return value if isinstance(value, str) else default

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self._values.get(name)
        if not isinstance(value, tuple):
            return default
        return tuple(item for item in value if isinstance(item, int))

    def items(self) -> list[tuple[str, Value]]:
        return sorted(self._values.items(), key=lambda item: item[0])


class Operator(msgspec.Struct, frozen=True):
    """An operator of the model.

    :param operands: by position, None where an optional one is left out; captured tensors of subgraphs at the end.
    :param results: the outputs that somebody reads; at least the first.
    :param outputs: names of all outputs by position, empty where an optional one is left out.
    """

    op_type: str
    domain: str
    kind: OpKind
    operands: tuple[Operand | None, ...]
    results: tuple[Operand, ...]
    attributes: Attributes
    outputs: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.results[0].name

    @property
    def activations(self) -> tuple[Operand, ...]:
        return tuple(o for o in self.operands if o is not None and not o.constant)

    @property
    def constants(self) -> tuple[Operand, ...]:
        return tuple(o for o in self.operands if o is not None and o.constant)

    @property
    def out(self) -> Operand:
        return self.results[0]

    def operand(self, position: int) -> Operand | None:
        return self.operands[position] if position < len(self.operands) else None

    @property
    def signature(self) -> str:
        """16 hex digits over type, domain, attributes and the constants' positions, shapes and dtypes."""
        constants = [
            [position, o.shape, o.dtype] for position, o in enumerate(self.operands) if o is not None and o.constant
        ]
        text = json.dumps([self.op_type, self.domain, self.attributes.items(), constants], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
