"""A bundle's own inputs, and the right answer to them."""

from __future__ import annotations

import numpy as np

from hetrl.export.bundle import Bundle, Refused
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
                array = np.load(bundle.folder / tensor.file, allow_pickle=False)
            except (ValueError, OSError, EOFError) as error:
                raise Refused(f"{tensor.file} is no array ({error})", "export the plan again") from None
            if not isinstance(array, np.ndarray) or array.shape != tensor.shape or array.dtype.name != tensor.dtype:
                raise Refused(f"{tensor.file} is no {tensor.dtype} of shape {list(tensor.shape)}")
            values[tensor.name] = array
        found.append(values)
    return found[0], found[1]
