"""A plan as a runner executes it: submodels in files, and which parts of which tensors they read and write."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TensorInfo:
    """A tensor that leaves a piece: `dtype` is numpy's name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Port:
    """An input or output of a submodel and the tensor behind it, of which it is the slice [start, stop) along `axis`.

    :param axis: None for the whole tensor.
    """

    name: str
    tensor: str
    axis: int | None = None
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Piece:
    """One part of one segment, as one submodel on one processor.

    :param segment: number of the plan's segment; parts of one segment run side by side.
    :param processor: `unit/engine/precision`.
    :param files: names in the blob folder, the one to load first; others are named by it.
    :param cores: cores that it may use, one thread each.
    :param device: number of the engine's device, such as a Vulkan one; None for the CPU.
    :param duty: share of the time that the processor may work; after `t` ms of work it idles `t * (1 / duty - 1)`.
    :param after: numbers of the pieces that must have ended before.
    """

    segment: int
    processor: str
    files: tuple[str, ...]
    cores: tuple[int, ...]
    reads: tuple[Port, ...]
    writes: tuple[Port, ...]
    device: int | None = None
    duty: float = 1.0
    after: tuple[int, ...] = ()

    @property
    def engine(self) -> str:
        return self.processor.split("/")[1]

    @property
    def precision(self) -> str:
        return self.processor.split("/")[2]


@dataclass(frozen=True)
class Job:
    """A whole plan. Pieces are in an order in which they may run one by one.

    :param tensors: all that pieces exchange, the model's inputs and outputs included.
    :param reference: blob of what its outputs should be, None to leave them unchecked.
    """

    tensors: tuple[TensorInfo, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    pieces: tuple[Piece, ...]
    reference: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that it needs to run, each once."""
        return tuple(dict.fromkeys(name for piece in self.pieces for name in piece.files))


def job_to_json(job: Job) -> dict[str, Any]:
    """What goes over the wire."""
    return asdict(job)


def job_from_json(data: dict[str, Any]) -> Job:
    """The same back.

    :raises KeyError, TypeError: it is no job.
    """
    return Job(
        tensors=tuple(TensorInfo(t["name"], tuple(t["shape"]), t["dtype"]) for t in data["tensors"]),
        inputs=tuple(data["inputs"]),
        outputs=tuple(data["outputs"]),
        pieces=tuple(_piece(piece) for piece in data["pieces"]),
        reference=data["reference"],
    )


def _piece(data: dict[str, Any]) -> Piece:
    ports = {side: tuple(Port(**port) for port in data[side]) for side in ("reads", "writes")}
    plain = {name: tuple(data[name]) for name in ("files", "cores", "after")}
    return Piece(**{**data, **plain, **ports})
