"""What each fusion group adds to the error of the output where it runs in fewer bits than the model has.

Rounding errors of different groups are independent, so that their squares add up (measured on resnet18 with bf16:
0.0034 for the whole, 0.0035 from its groups one by one). A square for every group and precision is fitted to all plans
whose error is known, also to those that failed for it, by least squares without negative numbers (multiplicative
updates, as Lee and Seung's of 2001), each pulled towards an equal share.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hetrl.envs.space import PlanSpace

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
EXACT = "fp32"
NOISE = 0.3  # of a square, as a share of it: the largest of many differences is a matter of luck
SPREAD = 2.0  # of the groups' squares, in equal shares
SWEEPS = 300
FLOOR = 1e-9  # of an error: what is less is none in float32


class OutputErrors:
    """Errors of one space's plans, as far as measurements tell."""

    def __init__(self, space: PlanSpace) -> None:
        processors = space.engine.processors
        lower = [frozenset(processors[p].precision for p in o.processors) - {EXACT} for o in space.options]
        kinds = sorted(set(lower) - {frozenset()}, key=sorted)
        self._kind = np.array([kinds.index(k) if k else -1 for k in lower], dtype=np.int64)  # (O,)
        self._groups = space.groups
        self._count = np.zeros((0, len(kinds) * space.groups))  # (plans seen, cells)
        self._square = np.zeros(0)
        self._of_cell = np.zeros(len(kinds) * space.groups)

    def learn(self, option: Ints, errors: Floats) -> None:
        """Take in (groups, B) placements whose errors (B,) were measured, and fit anew."""
        cells = self._cells(option)
        useful = self.explains(option) & np.isfinite(errors)
        self._count = np.vstack([self._count, cells[useful]])
        self._square = np.append(self._square, np.maximum(errors[useful], FLOOR) ** 2)
        if useful.any():
            self._fit()

    def explains(self, option: Ints) -> npt.NDArray[np.bool_]:
        """(B,) whether anything of (groups, B) placements runs in a lower precision."""
        return np.asarray((self._kind[option] >= 0).any(axis=0))

    def of(self, option: Ints) -> Floats:
        """(B,) the expected errors of (groups, B) placements; 0 where nothing is known."""
        return np.sqrt(self._cells(option) @ self._of_cell)

    def _cells(self, option: Ints) -> Floats:
        """(B, cells) which groups run in which lower precision."""
        kind = self._kind[option]
        cells = np.zeros((option.shape[1], len(self._of_cell)))
        group, plan = np.nonzero(kind >= 0)
        cells[plan, kind[group, plan] * self._groups + group] = 1.0
        return cells

    def _fit(self) -> None:
        equal = float(np.median(self._square / self._count.sum(axis=1)))
        certain = 1.0 / (NOISE * self._square) ** 2
        prior = 1.0 / (SPREAD * equal) ** 2
        matrix = (self._count * certain[:, None]).T @ self._count + prior * np.eye(len(self._of_cell))
        wanted = self._count.T @ (certain * self._square) + prior * equal
        squares = np.full(len(self._of_cell), equal)
        for _ in range(SWEEPS):
            squares *= wanted / (matrix @ squares)
        self._of_cell = squares
