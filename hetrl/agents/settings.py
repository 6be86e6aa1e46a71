"""Settings of a method: what suits the budget, with those that a file names put over it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from hetrl import plugins
from hetrl.agents.base import Kind, Method
from hetrl.errors import UnknownName, UsageError

Values = Mapping[str, Any]  # as a file or a caller gives them; checked by `configured`


def find_method(kind: Kind, name: str) -> Method[Any]:
    """The method that is registered under a name.

    :raises UnknownName: nothing is.
    """
    return cast(Method[Any], plugins.load(kind.group, name, kind.value, f"hetrl methods --kind {kind.value}"))


def check_method(kind: Kind, name: str) -> None:
    """Refuse a name that nothing is registered under, without importing anything.

    :raises UnknownName: naming near ones.
    """
    known = plugins.names(kind.group)
    if name not in known:
        raise UnknownName(kind.value, name, known, f"hetrl methods --kind {kind.value}")


def read_settings(path: Path) -> dict[str, Any]:
    """The top level of a TOML or JSON file.

    :raises UsageError: it cannot be read, or is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(f"{path} cannot be read ({reason})", "give a TOML or JSON file of settings") from None
    try:
        if path.suffix == ".json":
            return msgspec.json.decode(text, type=dict[str, Any])
        return tomllib.loads(text)
    except (msgspec.MsgspecError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} is no valid file of settings ({error})", "write lines like: environments = 64"
        ) from None


def configured(method: Method[Any], name: str, budget: int, values: Values) -> msgspec.Struct:
    """The method's settings for a budget, with `values` put over them.

    :raises UsageError: a name that it has no setting for, or a value that makes no sense.
    """
    fields = tuple(field.name for field in msgspec.structs.fields(method.config))
    for given in values:
        if given not in fields:
            raise UnknownName(f"setting of {name}", given, fields, f"hetrl methods {name}")
    settings = msgspec.structs.asdict(method.for_budget(budget)) | dict(values)
    try:
        return cast(msgspec.Struct, msgspec.convert(settings, method.config))
    except msgspec.ValidationError as error:
        raise UsageError(f"settings of {name}: {_plain(error)}", f"`hetrl methods {name}` lists them") from None


def _plain(error: msgspec.ValidationError) -> str:
    """msgspec's message in our words: `Expected `int`, got `str` - at `$.epochs`` names the setting at its end."""
    message, _, place = str(error).partition(" - at `$.")
    message = message.replace("`", "")
    return f"{place.rstrip('`')}: {message[:1].lower()}{message[1:]}" if place else message
