"""What an engine is to the executor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from hetrl.device_bridge.runner.job import Piece

Array = npt.NDArray[Any]


class Session(ABC):
    """A submodel that is loaded and bound to the arrays that it reads and writes."""

    @abstractmethod
    def run(self) -> None:
        """One inference, from the bound inputs into the bound outputs; releases the GIL while it computes."""

    def close(self) -> None:  # noqa: B027 - most engines leave it to the garbage collector
        """Let go of what it holds."""


class Engine(ABC):
    """One inference library on this machine."""

    name: str

    @abstractmethod
    def version(self) -> str:
        """The library's version; importing it is part of the question.

        :raises ImportError: it is not installed.
        """

    def devices(self) -> tuple[str, ...]:
        """Names of its devices beside the CPU, in the order of their numbers."""
        return ()

    @abstractmethod
    def load(self, piece: Piece, folder: Path, inputs: Sequence[Array], outputs: Sequence[Array]) -> Session:
        """Load a piece's submodel, and bind it to arrays.

        :param inputs: one view per `piece.reads`, not always contiguous; `outputs` likewise for `piece.writes`.
        """
