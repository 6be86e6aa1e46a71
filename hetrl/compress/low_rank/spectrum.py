"""Matrices of low rank: the best ones in the sense of least squares (Eckart and Young, Psychometrika 1936).

Bases come from the eigenvectors of the smaller Gram matrix, in float64. A matrix is then *projected* onto the first of
them, so that a basis of full rank gives it back whatever the accuracy of small singular values, and an error never
grows with the rank: each subspace holds those before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_CHUNK = 4096  # columns that are widened to float64 at a time
_TOLERANCE = 1e-12  # of an energy: 1.0 must not ask for more than there is
_SMALLEST = 1e-6  # of the largest singular value: what is smaller is not balanced any further


@dataclass(frozen=True)
class Spectrum:
    """Squared singular values of a matrix, falling, and the left singular vectors that belong to them.

    :param energies: (n,), n rows.
    :param vectors: (n, n), one vector per column.
    """

    energies: Floats
    vectors: Floats

    def kept(self, rank: int) -> float:
        """Share of the sum of squares that the rank keeps; 1 of a matrix of zeros."""
        total = float(self.energies.sum())
        return float(self.energies[:rank].sum()) / total if total > 0 else 1.0

    def rank_for(self, energy: float) -> int:
        """The smallest rank that keeps this share; at least 1."""
        total = float(self.energies.sum())
        if total <= 0:
            return 1
        enough = np.cumsum(self.energies) >= (energy - _TOLERANCE) * total
        return int(np.argmax(enough)) + 1 if enough.any() else len(self.energies)


def spectrum(matrix: NDArray[np.generic]) -> Spectrum:
    """Of the rows of a matrix, however many columns it has."""
    rows, columns = matrix.shape
    gram = np.zeros((rows, rows))
    for start in range(0, columns, _CHUNK):
        part = np.asarray(matrix[:, start : start + _CHUNK], np.float64)
        gram += part @ part.T
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    largest = vectors[np.abs(vectors).argmax(0), np.arange(rows)]
    return Spectrum(values, vectors * np.where(largest < 0, -1.0, 1.0))  # a sign is as good as the other: one of them


@dataclass(frozen=True)
class Product:
    """A matrix (m, n) that waits to become a product of (m, r) and (r, n).

    :param of_columns: whether the spectrum is of the transposed matrix, which then has fewer rows.
    """

    matrix: NDArray[np.generic]
    spectrum: Spectrum
    of_columns: bool

    @classmethod
    def of(cls, matrix: NDArray[np.generic]) -> Product:
        of_columns = matrix.shape[0] > matrix.shape[1]
        return cls(matrix, spectrum(matrix.T if of_columns else matrix), of_columns)

    def split(self, rank: int) -> tuple[Floats, Floats]:
        """The two factors, of balanced sizes: half precision and int8 then lose least in either."""
        basis = self.spectrum.vectors[:, :rank]
        singular = np.sqrt(self.spectrum.energies[:rank])
        scale = np.sqrt(np.maximum(singular, _SMALLEST * singular.max(initial=0)))
        scale = np.where(scale > 0, scale, 1.0)
        if self.of_columns:
            return _projected(basis, self.matrix.T).T / scale, scale[:, None] * basis.T
        return basis * scale, _projected(basis, self.matrix) / scale[:, None]


def _projected(basis: Floats, matrix: NDArray[np.generic]) -> Floats:
    """The transposed basis times the matrix; its float64 copy, which may be huge, is never whole."""
    starts = range(0, matrix.shape[1], _CHUNK)
    parts = [basis.T @ np.asarray(matrix[:, start : start + _CHUNK], np.float64) for start in starts]
    return np.concatenate(parts, axis=1)
