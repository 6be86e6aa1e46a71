"""Entry points: hetrl's own devices, agents and policies register the way third parties' do."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from hetrl.errors import HetrlError, UnknownName


def names(group: str) -> tuple[str, ...]:
    """Names registered in a group, without importing anything."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


def load(group: str, name: str, kind: str, command: str) -> Any:
    """Import what is registered under a name.

    :param kind: what the name should name, for the error.
    :param command: the command that lists the group.
    :raises UnknownName: nothing is.
    """
    for point in entry_points(group=group):
        if point.name == name:
            return _load(point)
    raise UnknownName(kind, name, names(group), command)


def load_all(group: str) -> dict[str, Any]:
    """Import everything in a group."""
    return {point.name: _load(point) for point in entry_points(group=group)}


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise HetrlError(f"plug-in {point.name!r} ({point.value}) cannot be imported: {error}") from error
