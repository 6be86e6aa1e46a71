"""`hetrl tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetrl.cli import options, output
from hetrl.tasks.names import SCHEDULERS

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def tasks(  # noqa: PLR0913, PLR0917 (typer reads the options from the parameters)
    device: options.Device,
    model: Annotated[
        list[str], typer.Option("--model", metavar="NAME|FILE", help="A model that is asked for (repeatable).")
    ],
    period: Annotated[
        list[float], typer.Option("--period", metavar="MS", help="Time between its requests; one for all, or one each.")
    ],
    slo: Annotated[
        list[float] | None,
        typer.Option("--slo", metavar="MS", help="How long a request may take (its period); one for all, or one each."),
    ] = None,
    duration: Annotated[float, typer.Option("--duration", metavar="MS", help="How long requests come.")] = 2000.0,
    scheduler: Annotated[
        list[str] | None,
        typer.Option("--scheduler", metavar="NAME", help=f"all, or one of {', '.join(SCHEDULERS)} (repeatable)."),
    ] = None,
    plan: Annotated[
        list[Path] | None, typer.Option("--plan", metavar="FILE", help="A plan for one of the models (repeatable).")
    ] = None,
    engine: options.Engine = None,
    condition: options.Conditions = None,
    max_accuracy_drop: options.MaxAccuracyDrop = 0.0,
    json: options.Json = False,
) -> None:
    """Run several models at once: throughput, latency, deadline misses.

    Compares Band's schedulers with plans for whole requests. `exact` runs each model's fastest plan, `hetrl` what is
    best for all of them together. Simulated: every number is predicted.
    """
    options.check_condition(condition)
    objective = options.objective(max_accuracy_drop, None)

    from hetrl.tasks.compare import compare_tasks

    comparison = compare_tasks(
        model,
        device,
        period_ms=period,
        deadline_ms=slo or (),
        duration_ms=duration,
        schedulers=SCHEDULERS if not scheduler or "all" in scheduler else scheduler,
        plans=plan or (),
        engine=engine,
        condition=condition or "cold",
        objective=objective,
    )
    if json:
        output.print_json(comparison)
        return
    from hetrl.report.task_tables import streams_table, task_lines, tasks_table

    title = f"{', '.join(model)} on {comparison.device}, {comparison.engine}, {comparison.condition}"
    output.show(title, tasks_table(comparison), "", streams_table(comparison), *task_lines(comparison))
