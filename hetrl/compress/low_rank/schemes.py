"""Kernels and matrices as chains of smaller ones: their shapes, ranks and numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hetrl.compress.low_rank.policy import Scheme, rank_by_share
from hetrl.compress.low_rank.spectrum import Floats, Product, spectrum

Array = NDArray[np.generic]
Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Factor:
    """One link of a chain.

    :param suffix: what its weights are called after the original's name.
    :param shape: of its weights.
    :param axes: of a convolution's spatial axes those along which this link has the window, with the stride, the
        dilation and the padding that belong to it.
    """

    suffix: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()

    @property
    def weights(self) -> int:
        return math.prod(self.shape)


class Parts(ABC):
    """The numbers of one kernel, ready for any ranks."""

    @abstractmethod
    def kept(self, ranks: Ranks) -> float:
        """Share of the sum of squared weights that these ranks keep."""

    @abstractmethod
    def ranks_for(self, energy: float) -> Ranks:
        """The ranks of fewest weights that keep at least this share."""

    @abstractmethod
    def arrays(self, ranks: Ranks) -> Sequence[Floats]:
        """The links' weights, in their order."""


class Chain(ABC):
    """One way to factor weights of one shape.

    :param shape: of the weights: (out, in, *window) of a convolution, (in, out) of a dense layer.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    @property
    @abstractmethod
    def full(self) -> Ranks:
        """The ranks beyond which nothing is gained."""

    @abstractmethod
    def factors(self, ranks: Ranks) -> tuple[Factor, ...]:
        """The links."""

    @abstractmethod
    def parts(self, weights: Array) -> Parts:
        """The numbers."""

    def weights(self, ranks: Ranks) -> int:
        return sum(factor.weights for factor in self.factors(ranks))

    def by_rank(self, rank: int) -> Ranks:
        return tuple(min(rank, most) for most in self.full)

    def by_share(self, keep: float) -> Ranks:
        """The largest rank that leaves at most this share of the weights."""
        rank = rank_by_share(keep, math.prod(self.shape), self.weights((1,)))
        return self.by_rank(rank)


class _PairParts(Parts):
    def __init__(self, chain: Pair, weights: Array) -> None:
        self._chain = chain
        self._product = Product.of(chain.matrix(weights))

    def kept(self, ranks: Ranks) -> float:
        return self._product.spectrum.kept(ranks[0])

    def ranks_for(self, energy: float) -> Ranks:
        return (self._product.spectrum.rank_for(energy),)

    def arrays(self, ranks: Ranks) -> Sequence[Floats]:
        return self._chain.arrays(*self._product.split(ranks[0]))


class Pair(Chain):
    """Two links: the weights as a matrix, which is a product of two."""

    @abstractmethod
    def matrix(self, weights: Array) -> Array:
        """The weights unfolded."""

    @abstractmethod
    def arrays(self, left: Floats, right: Floats) -> Sequence[Floats]:
        """The factors of that matrix as weights of the two links."""

    def parts(self, weights: Array) -> Parts:
        return _PairParts(self, weights)


class Dense(Pair):
    """A matrix (in, out) as (in, r) and (r, out): the SVD."""

    @property
    def full(self) -> Ranks:
        return (min(self.shape),)

    def factors(self, ranks: Ranks) -> tuple[Factor, ...]:
        depth, columns = self.shape
        return Factor("narrow", (depth, ranks[0])), Factor("wide", (ranks[0], columns))

    def matrix(self, weights: Array) -> Array:
        return weights

    def arrays(self, left: Floats, right: Floats) -> Sequence[Floats]:
        return left, right


class Narrow(Pair):
    """The window to r channels, then 1x1 to all of them; of 1x1 convolutions the SVD."""

    @property
    def full(self) -> Ranks:
        return (min(self.shape[0], math.prod(self.shape[1:])),)

    def factors(self, ranks: Ranks) -> tuple[Factor, ...]:
        out, channels, *window = self.shape
        ones = (1,) * len(window)
        first = Factor("narrow", (ranks[0], channels, *window), tuple(range(len(window))))
        return first, Factor("wide", (out, ranks[0], *ones))

    def matrix(self, weights: Array) -> Array:
        return weights.reshape(self.shape[0], -1)

    def arrays(self, left: Floats, right: Floats) -> Sequence[Floats]:
        rank = len(right)
        first, second = self.factors((rank,))
        return right.reshape(first.shape), left.reshape(second.shape)


class Spatial(Pair):
    """Columns to r channels, then rows to all of them."""

    @property
    def full(self) -> Ranks:
        out, channels, height, width = self.shape
        return (min(channels * height, out * width),)

    def factors(self, ranks: Ranks) -> tuple[Factor, ...]:
        out, channels, height, width = self.shape
        rank = ranks[0]
        return Factor("column", (rank, channels, height, 1), (0,)), Factor("row", (out, rank, 1, width), (1,))

    def matrix(self, weights: Array) -> Array:
        out, channels, height, width = self.shape
        return weights.transpose(1, 2, 0, 3).reshape(channels * height, out * width)

    def arrays(self, left: Floats, right: Floats) -> Sequence[Floats]:
        out, channels, height, width = self.shape
        rank = len(right)
        rows = right.reshape(rank, out, 1, width).transpose(1, 0, 2, 3)
        return left.T.reshape(rank, channels, height, 1), rows


class _TuckerParts(Parts):
    """Higher-order SVD over both channel axes (De Lathauwer et al., SIAM J. Matrix Anal. Appl. 2000)."""

    def __init__(self, chain: Tucker, weights: Array) -> None:
        self._chain = chain
        out, channels = chain.shape[:2]
        kernel = np.asarray(weights, np.float64)
        self._left = spectrum(kernel.reshape(out, -1)).vectors
        self._right = spectrum(kernel.swapaxes(0, 1).reshape(channels, -1)).vectors
        self._core = np.einsum("oi...,op,iq->pq...", kernel, self._left, self._right, optimize=True)
        energies = np.square(self._core.reshape(out, channels, -1)).sum(2)
        self._kept = energies.cumsum(0).cumsum(1)  # of every pair of ranks

    def kept(self, ranks: Ranks) -> float:
        into, outof = ranks
        total = float(self._kept[-1, -1])
        return float(self._kept[outof - 1, into - 1]) / total if total > 0 else 1.0

    def ranks_for(self, energy: float) -> Ranks:
        most_in, most_out = self._chain.full
        wanted = energy * (1 - 1e-12) * self._kept[-1, -1]
        best = self._chain.full
        fewest = self._chain.weights(best)
        for outof in range(1, most_out + 1):
            into = int(np.searchsorted(self._kept[outof - 1, :most_in], wanted)) + 1
            if into <= most_in and (count := self._chain.weights((into, outof))) < fewest:
                best, fewest = (into, outof), count
        return best

    def arrays(self, ranks: Ranks) -> Sequence[Floats]:
        into, outof = ranks
        first, core, last = self._chain.factors(ranks)
        return (
            self._right[:, :into].T.reshape(first.shape),
            self._core[:outof, :into].reshape(core.shape),
            self._left[:, :outof].reshape(last.shape),
        )


class Tucker(Chain):
    """1x1 to r_in channels, the window to r_out, 1x1 to all of them; ranks are (r_in, r_out)."""

    @property
    def full(self) -> Ranks:
        out, channels, *window = self.shape
        positions = math.prod(window)
        return min(channels, out * positions), min(out, channels * positions)

    def factors(self, ranks: Ranks) -> tuple[Factor, ...]:
        out, channels, *window = self.shape
        (into, outof), ones = ranks, (1,) * len(window)
        return (
            Factor("into", (into, channels, *ones)),
            Factor("core", (outof, into, *window), tuple(range(len(window)))),
            Factor("outof", (out, outof, *ones)),
        )

    def by_share(self, keep: float) -> Ranks:
        """Both ranks in the ratio of their largest values."""
        most_in, most_out = self.full

        def pair(outof: int) -> Ranks:
            return max(1, outof * most_in // most_out), outof

        fitting = [
            outof for outof in range(1, most_out + 1) if self.weights(pair(outof)) <= keep * math.prod(self.shape)
        ]
        return pair(max(fitting, default=1))

    def parts(self, weights: Array) -> Parts:
        return _TuckerParts(self, weights)


def chain(scheme: Scheme, shape: tuple[int, ...]) -> tuple[Scheme, Chain]:
    """How a convolution's kernel (out, in, *window) is factored, and the scheme that this is."""
    window = shape[2:]
    if math.prod(window) > 1 and scheme is Scheme.TUCKER:
        return scheme, Tucker(shape)
    if len(window) == 2 and min(window) > 1 and scheme is Scheme.SPATIAL:
        return scheme, Spatial(shape)
    return Scheme.NARROW, Narrow(shape)
