"""`hetrl plan show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetrl.cli import options, output
from hetrl.plan import load_plan

app = typer.Typer(add_completion=False, help="Look into plan files.", no_args_is_help=True)


@app.callback()
def plan() -> None: ...


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A plan, as `hetrl train` writes it.")],
    json: options.Json = False,
) -> None:
    """Print what a plan does: segments, processors, shares, and what it was expected to give."""
    found = load_plan(file)
    if json:
        output.print_json({"key": found.key, "processors": found.processors, "splits": found.splits, "plan": found})
        return
    from hetrl.report.tables import plan_lines, segments_table

    output.show(segments_table(found), *plan_lines(found))
