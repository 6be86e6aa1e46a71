"""The built-in networks. Building one needs `onnx`, which is imported only then."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hetrl.errors import UnknownName
from hetrl.zoo.catalog import Entry, catalog
from hetrl.zoo.resolve import resolve_model

if TYPE_CHECKING:
    import onnx

__all__ = ["Entry", "build", "catalog", "names", "resolve_model", "save"]


def names() -> tuple[str, ...]:
    """Names of the built-in networks, sorted."""
    return tuple(entry.name for entry in catalog())


def build(name: str, *, seeded_weights: int | None = None, size: tuple[int, int] | None = None) -> onnx.ModelProto:
    """A built-in network as ONNX (opset 17, float32).

    Without weights (the default) the model is some kilobytes: its initializers have shapes and no bytes, and it can be
    analysed and measured on a surrogate, not run. With a seed it carries random weights, 4 bytes per parameter,
    scaled so that activations stay near 1.

    :param seeded_weights: a seed of at least 0.
    :param size: height and width of the input instead of the catalog's; a builder says which it takes.
    :raises UnknownName: no such network.
    """
    from hetrl.zoo.networks import blueprint

    _require(name)
    plan = blueprint(name, size)
    return plan.model if seeded_weights is None else plan.with_weights(seeded_weights)


def save(name: str, path: str | Path, *, seeded_weights: int | None = None) -> None:
    """Write a built-in network to `path`; seeded weights go to `<path>.weights`, without holding all in memory.

    :raises UnknownName: no such network.
    :raises OSError: the file cannot be written.
    """
    from hetrl.zoo.networks import blueprint

    _require(name)
    blueprint(name).save(Path(path), seeded_weights)


def _require(name: str) -> None:
    if name not in names():
        raise UnknownName("model", name, names(), "hetrl models")
