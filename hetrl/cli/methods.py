"""`hetrl methods`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hetrl.cli import options, output
from hetrl.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from hetrl.agents.base import Kind, Method

KINDS = ("agent", "sampler")

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="An agent or a sampler: its settings.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="agent|sampler", help="Only agents (train) or samplers (search).")
    ] = None,
    budget: Annotated[
        int | None, typer.Option("--budget", metavar="N", help="Settings that suit so many evaluations (1000).")
    ] = None,
    json: options.Json = False,
) -> None:
    """List what finds plans: agents that learn, samplers that search; with a name, its settings.

    A file of settings goes to `hetrl train --config FILE` or `hetrl search --config FILE`.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"--kind {kind!r} is none", "give agent or sampler")
    options.check_numbers(budget, 0)
    from hetrl.agents.base import Kind
    from hetrl.agents.settings import find_method
    from hetrl.plugins import names

    kinds = [k for k in Kind if kind in (None, k.value)]
    if name is None:
        _list([(k, found, find_method(k, found)) for k in kinds for found in names(k.group)], json)
        return
    known = {found: k for k in kinds for found in names(k.group)}
    if name not in known:
        raise UnknownName(kind or "method", name, known, "hetrl methods")
    _describe(known[name], name, budget, json)


def _list(found: list[tuple[Kind, str, Method[Any]]], json: bool) -> None:
    if json:
        listed = [{"name": name, "kind": kind.value, "summary": method.summary} for kind, name, method in found]
        output.print_json({"methods": listed})
        return
    from hetrl.report.tables import grid

    table = grid("method", "kind", "used by", "what it does")
    for kind, name, method in found:
        table.add_row(name, kind.value, f"hetrl {kind.command} --{kind.value} {name}", method.summary)
    output.show(table)


def _describe(kind: Kind, name: str, budget: int | None, json: bool) -> None:
    import msgspec

    from hetrl.agents.settings import find_method
    from hetrl.api import DEFAULT_BUDGET

    method: Method[Any] = find_method(kind, name)
    budget = budget or DEFAULT_BUDGET
    settings = msgspec.structs.asdict(method.for_budget(budget))
    defaults = {
        field.name: None if field.default is msgspec.NODEFAULT else field.default
        for field in msgspec.structs.fields(method.config)
    }
    if json:
        about = {"name": name, "kind": kind.value, "summary": method.summary, "budget": budget}
        output.print_json(about | {"settings": settings, "defaults": defaults})
        return
    from hetrl.report.tables import grid

    output.show(f"{name}: {method.summary}", "")
    if not settings:
        output.show("It has no settings.")
        return
    table = grid("setting", "default", f"for {budget:,} evaluations")
    for setting, value in settings.items():
        table.add_row(setting, _text(defaults[setting]), _text(value))
    output.show(table, "", f"next       hetrl {kind.command} --{kind.value} {name} --config FILE, a TOML or JSON file")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
