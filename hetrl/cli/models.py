"""`hetrl models`."""

from __future__ import annotations

import typer

from hetrl.cli import options, output
from hetrl.zoo.catalog import catalog

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def models(json: options.Json = False) -> None:
    """List the built-in models. Any ONNX file works as well: `--model path/to/model.onnx`."""
    if json:
        output.print_json({"models": catalog()})
        return
    from hetrl.report.tables import grid

    table = grid("model", "what it is", "task", "input", ">parameters", ">GMACs", ">operators", ">fusion groups")
    for entry in catalog():
        shape = "x".join(map(str, entry.input_shape))
        table.add_row(
            entry.name,
            entry.title,
            entry.task,
            f"{entry.input_name}:{shape}",
            f"{entry.parameters / 1e6:.1f} M",
            f"{entry.macs / 1e9:.2f}",
            str(entry.operators),
            str(entry.groups),
        )
    output.show(table)
