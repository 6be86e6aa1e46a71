"""`hetrl devices`."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import typer

from hetrl.cli import options, output
from hetrl.device_bridge.spec import DeviceSpec, Quantity, Source, builtin_names, load_spec

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def devices(json: options.Json = False) -> None:
    """List the devices that hetrl knows.

    The table also counts how many numbers of each device file were measured, fitted, scaled or assumed.
    """
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
