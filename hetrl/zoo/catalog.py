"""What `hetrl models` prints, without building a network."""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A built-in network.

    :param parameters: counted as PyTorch counts them (no running means and variances).
    :param macs: multiply-accumulates of convolutions and dense layers, one inference.
    :param operators: nodes of the operator graph.
    :param groups: its fusion groups, the places a plan decides about.
    :param source: the paper that the architecture is from.
    """

    name: str
    title: str
    input_name: str
    input_shape: tuple[int, ...]
    parameters: int
    macs: int
    operators: int
    groups: int
    task: str
    source: str


@cache
def catalog() -> tuple[Entry, ...]:
    """All built-in networks, by name."""
    data = resources.files("hetrl.zoo").joinpath("catalog.json").read_bytes()
    return tuple(sorted(msgspec.json.decode(data, type=tuple[Entry, ...]), key=lambda entry: entry.name))
