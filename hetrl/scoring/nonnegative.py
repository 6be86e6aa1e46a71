"""Least squares with coefficients of at least 0 (Lawson and Hanson, "Solving Least Squares Problems", 1974, ch. 23)."""

from __future__ import annotations

import numpy as np

from hetrl.scoring.statistics import Floats

_TINY = 1e-10


def nonnegative_least_squares(matrix: Floats, right: Floats) -> Floats:
    """The vector x of no negative numbers that makes |matrix x - right| smallest.

    :param matrix: of full column rank.
    """
    size = np.linalg.norm(matrix, axis=0)
    scaled, solution = matrix / size, np.zeros(matrix.shape[1])
    free = np.zeros(matrix.shape[1], bool)
    for _ in range(10 * matrix.shape[1]):  # each step frees one; it ends far earlier
        slope = scaled.T @ (right - scaled @ solution)
        slope[free] = 0
        best = int(np.argmax(slope))
        if slope[best] <= _TINY * max(1.0, float(np.linalg.norm(right))):
            break
        free[best] = True
        solution = _moved(scaled, right, solution, free)
    result: Floats = solution / size
    return result


def _moved(matrix: Floats, right: Floats, solution: Floats, free: np.ndarray) -> Floats:
    """The best solution of the free coefficients; those that would fall below 0 on the way are fixed there."""
    while True:
        target = np.zeros_like(solution)
        target[free] = np.linalg.lstsq(matrix[:, free], right, rcond=None)[0]
        below = free & (target <= 0)
        if not below.any():
            return target
        share = (solution[below] / (solution[below] - target[below])).min()
        solution = solution + share * (target - solution)
        free &= solution > _TINY
        solution[~free] = 0
