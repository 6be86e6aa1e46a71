"""Numbers in 16 bits."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper


class Half(StrEnum):
    """The two types of 16 bits; which ONNX code each has, the smallest and the largest number that it holds."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def code(self) -> int:
        return int(TensorProto.FLOAT16 if self is Half.FLOAT16 else TensorProto.BFLOAT16)


def narrowed(array: NDArray[np.generic], half: Half) -> tuple[NDArray[np.generic], bool]:
    """The numbers in half precision, kept inside of its range, and whether one was beyond it.

    Numbers that are not zero stay so: a 1e-12 that keeps a square root from dividing by zero must go on doing that.
    """
    dtype = helper.tensor_dtype_to_np_dtype(half.code)
    largest, smallest = (65504.0, 2.0**-24) if half is Half.FLOAT16 else (3.38e38, 2.0**-133)
    size = np.abs(array)
    outside = bool((np.isfinite(array) & (size > largest)).any())
    with np.errstate(over="ignore", under="ignore"):
        limited = np.where(np.isfinite(array), np.clip(array, -largest, largest), array)
        limited = np.where((size > 0) & (size < smallest), np.copysign(smallest, array), limited)
        return limited.astype(dtype), outside
