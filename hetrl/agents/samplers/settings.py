"""Checks that the samplers' settings share."""

from __future__ import annotations

import msgspec


def at_least(settings: msgspec.Struct, name: str, lowest: float) -> None:
    """Refuse a setting below what makes sense.

    :raises ValueError: naming the setting and its lowest value.
    """
    value = getattr(settings, name)
    if not value >= lowest:
        raise ValueError(f"{name} is {value:g}, {lowest:g} or more makes sense")
