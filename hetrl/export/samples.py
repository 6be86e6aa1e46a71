"""A bundle's own inputs, and the right answer to them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from hetrl.export.bundle import Bundle, Refused, Tensor
from hetrl.graph.single import Array


def samples(bundle: Bundle) -> tuple[dict[str, Array], dict[str, Array]]:
    """A bundle's own inputs, and what the whole model made of them.

    :raises Refused: an array is not what the manifest says.
    """
    manifest = bundle.manifest
    found: list[dict[str, Array]] = []
    for tensors in (manifest.inputs, manifest.outputs):
        values = {}
        for tensor in tensors:
            if tensor.file is None:
                raise Refused(f"the bundle has no sample of {tensor.name!r}", "export the plan again")
            try:
                values[tensor.name] = _read(bundle.folder / tensor.file, tensor)
            except (ValueError, OSError, EOFError) as error:
                raise Refused(f"{tensor.file} is no array ({error})", "export the plan again") from None
        found.append(values)
    return found[0], found[1]


def _read(path: Path, tensor: Tensor) -> Array:
    """The header first: it must not make anybody allocate what the file does not hold.

    :raises ValueError: the file is no array, or another one.
    """
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("its format is not 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if shape != tensor.shape or dtype.name != tensor.dtype or dtype.hasobject:
            raise ValueError(f"it is {dtype.name} {list(shape)}, not {tensor.dtype} {list(tensor.shape)}")
        if path.stat().st_size - file.tell() != dtype.itemsize * math.prod(shape):
            raise ValueError("its size is not that of its shape")
        file.seek(0)
        found: Array = np.lib.format.read_array(file, allow_pickle=False)
        return found
