"""`hetrl devices`."""

from __future__ import annotations

import shlex
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from hetrl.cli import options, output
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import DeviceSpec, builtin_names, load_spec
from hetrl.errors import UsageError

ENGINES = {"onnxruntime": "hetrl[host]", "openvino": "hetrl[host]", "ncnn": "hetrl[ncnn]"}  # and their extras
ADDRESSES = {
    "host": "this computer: plans really run, in a process of their own",
    "ssh://USER@BOARD[:PORT]": "a board or computer that ssh reaches, with Python and an engine",
    "adb:SERIAL": "an Android phone, through adb",
    "replay:FILE": "what --record or `hetrl profile` recorded of one of these",
}

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
        output.print_json({"devices": [*map(describe, specs), *real()]})
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
    output.show(table, "The last columns count each device file's numbers by where they come from.", "")
    addresses = grid("real device", "what it is")
    for address, what in ADDRESSES.items():
        addresses.add_row(address, what)
    there = ", ".join(name for name in ENGINES if is_there(name)) or "none"
    missing = [f"pip install {extra!r} brings {name}" for name, extra in ENGINES.items() if not is_there(name)]
    output.show(addresses, f"Engines for host: {there}." + "".join(f" {one}." for one in missing))


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


def is_there(engine: str) -> bool:
    """Whether an engine's package is installed; it is not imported. `hetrl doctor` says whether it works."""
    return find_spec(engine) is not None


def real() -> list[dict[str, Any]]:
    """What `--json` says of real devices; of this computer also which engines it has, and how to get the others."""
    engines = [
        {"name": name, "installed": is_there(name), "install": f"pip install {extra!r}"}
        for name, extra in ENGINES.items()
    ]
    return [
        {"id": address, "what": what} | ({"runtimes": engines} if address == "host" else {})
        for address, what in ADDRESSES.items()
    ]


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
