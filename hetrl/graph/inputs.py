"""The grammar of `--input-shape`."""

from __future__ import annotations

from hetrl.errors import UsageError


def format_shape(shape: tuple[int, ...]) -> str:
    """`(1, 3, 224, 224)` as `1x3x224x224`; a scalar's shape is `scalar`."""
    return "x".join(str(size) for size in shape) or "scalar"


def parse_input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `name:1x3x224x224`.

    The shape is what follows the last colon, so that names with colons (`input:0:1x3x224x224`) work.

    :returns: the input's name and its shape, every size at least 1.
    :raises UsageError: anything else.
    """
    name, colon, shape = text.rpartition(":")
    sizes = shape.strip().lower().split("x")
    if not colon or not name.strip() or not all(size.isascii() and size.isdigit() for size in sizes):
        raise UsageError(f"{text!r} is no input shape", "write it like data:1x3x224x224")
    dims = tuple(int(size) for size in sizes)
    if 0 in dims:
        raise UsageError(f"the input shape {text!r} has a size of zero", "write it like data:1x3x224x224")
    return name.strip(), dims
