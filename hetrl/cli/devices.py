"""`hetrl devices`."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from hetrl.cli import options, output
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import DeviceSpec, builtin_names, load_spec
from hetrl.errors import UsageError

app = typer.Typer(add_completion=False, invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def devices(context: typer.Context, json: options.Json = False) -> None:
    """List the devices that hetrl knows, or start and check a device file of your own.

    The table also counts how many numbers of each device file were measured, fitted, scaled or assumed.
    """
    if context.invoked_subcommand is not None:
        return
    specs = [load_spec(name) for name in builtin_names()]
    if json:
        output.print_json({"devices": [describe(spec) for spec in specs]})
        return
    from hetrl.report.tables import grid

    table = grid("device", "phone", "soc", "engine", "processors", *(f">{source.value}" for source in Source))
    for spec in specs:
        counts = sources(spec)
        for row, name in enumerate(sorted(spec.engines, key=lambda name: name != spec.default_engine)):
            processors = ", ".join(f"{p.unit} {p.precision}" for p in spec.engines[name].processors)
            first = row == 0
            numbers = [str(counts[source]) if first else "" for source in Source]
            table.add_row(*((spec.id, spec.phone, spec.soc) if first else ("", "", "")), name, processors, *numbers)
    output.show(table, "The last columns count each device file's numbers by where they come from.")


@app.command()
def init(file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it: FILE.toml.")]) -> None:
    """Write a commented template of a device file."""
    from hetrl.device_bridge.template import template_toml

    if file.suffix != ".toml":
        raise UsageError(f"{file} does not end in .toml", f"hetrl devices init {file.with_suffix('.toml')}")
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(template_toml())
    except FileExistsError:
        raise UsageError(f"{file} exists already", "give another name") from None
    output.show(f"wrote {file}; next: hetrl devices check {shlex.quote(str(file))}")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A device file.")], json: options.Json = False
) -> None:
    """Say what is missing or implausible in a device file. Exits 1 if anything is."""
    from hetrl.device_bridge.plausibility import check_spec

    spec = load_spec(str(file) if file.suffix else f"./{file}")
    findings = check_spec(spec)
    if json:
        output.print_json({"ok": not findings, "device": spec.id, "findings": findings})
    else:
        counts = ", ".join(f"{sources(spec)[source]} {source.value}" for source in Source)
        lines = [f"{finding.field}: {finding.problem}" for finding in findings]
        output.show(f"{file}: {spec.id} ({spec.soc}); numbers: {counts}", *(lines or ["nothing to complain about"]))
    if findings:
        raise typer.Exit(1)


def describe(spec: DeviceSpec) -> dict[str, Any]:
    """What `--json` says of a device: a summary, and the whole file as `spec`."""
    return {
        "id": spec.id,
        "phone": spec.phone,
        "soc": spec.soc,
        "default_engine": spec.default_engine,
        "engines": {name: [p.id for p in engine.processors] for name, engine in spec.engines.items()},
        "sources": {source.value: sources(spec)[source] for source in Source},
        "spec": spec,
    }


def sources(thing: Any) -> Counter[Source]:
    """How many numbers under `thing` are of each source."""
    if isinstance(thing, Quantity):
        return Counter([thing.source])
    if isinstance(thing, msgspec.Struct):
        thing = msgspec.structs.astuple(thing)
    elif isinstance(thing, dict):
        thing = tuple(thing.values())
    elif not isinstance(thing, tuple):
        return Counter()
    return sum((sources(part) for part in thing), Counter())
