"""`hetrl plan show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetrl.cli import options, output
from hetrl.plan import load_plan

app = typer.Typer(add_completion=False, invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def plan(context: typer.Context) -> None:
    """Look into plan files."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A plan, as `hetrl train` writes it.")],
    json: options.Json = False,
) -> None:
    """Print what a plan does, and how it should do.

    Segments, processors, shares, global settings, and what its maker saw.
    """
    found = load_plan(file)
    if json:
        output.print_json({"key": found.key, "processors": found.processors, "splits": found.splits, "plan": found})
        return
    from hetrl.report.tables import plan_lines, segments_table

    output.show(segments_table(found), *plan_lines(found))
