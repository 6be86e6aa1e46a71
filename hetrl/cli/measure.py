"""`hetrl measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetrl.cli import options, output
from hetrl.errors import DeviceFailed, HetrlError, Infeasible, UsageError
from hetrl.measurement import Failure

LOST = (Failure.TIMEOUT, Failure.LOST, Failure.CRASHED)  # the device's fault; the others are answers

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def measure(  # noqa: PLR0913, PLR0917 (typer reads the options from the parameters)
    device: options.Device,
    model: options.Model,
    policy: Annotated[str | None, typer.Option("--policy", metavar="NAME", help="A hand policy to measure.")] = None,
    plan: Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="A plan file to measure.")] = None,
    engine: options.Engine = None,
    condition: options.Conditions = None,
    input_shape: options.InputShapes = None,
    max_output_error: options.MaxOutputError = None,
    seeded_weights: options.SeededWeights = None,
    record: options.Record = None,
    json: options.Json = False,
) -> None:
    """Measure one plan: of a file, or of a hand policy."""
    if (policy is None) == (plan is None):
        raise UsageError("measure takes either --policy or --plan", "`hetrl policies` lists the policies")
    options.check_condition(condition)
    shapes = options.input_shapes(input_shape)

    from hetrl.api import measure as measure_plan

    row = measure_plan(
        model,
        device,
        policy=policy,
        plan=plan,
        engine=engine,
        condition=condition,
        objective=options.objective(0.0, None, max_output_error),
        input_shapes=shapes,
        seeded_weights=seeded_weights,
        record=record,
    )
    if row.error is not None:
        raise no_numbers(row.error)
    if json:
        output.print_json(row)
        return
    from hetrl.report.gantt import gantt_text
    from hetrl.report.tables import fallbacks_table, row_bound_line, rows_table, timeline_table

    output.show(rows_table([row]), row_bound_line(row))
    if row.segments:
        output.show("", timeline_table(row.segments), "", gantt_text(row.segments))
    if row.fallbacks:
        output.show("", fallbacks_table(row.fallbacks))


def no_numbers(error: str) -> HetrlError:
    """The exception for a measurement that failed, `error` being `kind: message`."""
    return DeviceFailed(error) if error.startswith(LOST) else Infeasible(error)
