"""`hetrl compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from hetrl.cli import options, output
from hetrl.errors import UsageError

LEFT_OUT = {"segments", "fallbacks"}  # of each row: `hetrl measure` tells them

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def compare(  # noqa: PLR0913, PLR0917 (typer reads the options from the parameters)
    device: options.Device,
    model: options.Model,
    plan: Annotated[
        list[Path] | None, typer.Option("--plan", metavar="FILE", help="A plan file to compare as well (repeatable).")
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Learn a plan first, and compare it as `learned`.")] = False,
    engine: options.Engine = None,
    condition: options.Conditions = "cold",
    agent: options.Agent = "maskable-ppo",
    budget: options.Budget = None,
    seed: options.Seed = 0,
    max_accuracy_drop: options.MaxAccuracyDrop = 0.0,
    max_frame_drop: options.MaxFrameDrop = None,
    input_shape: options.InputShapes = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare hand policies, the exact optimum and learned plans.

    Learns only with --train.
    """
    options.check_condition(condition)
    options.check_numbers(budget, seed)
    objective = options.objective(max_accuracy_drop, max_frame_drop)
    shapes = options.input_shapes(input_shape)
    if budget is not None and not train:
        raise UsageError("--budget is for learning", "add --train")

    from hetrl.api import compare as compare_plans
    from hetrl.cli.progress import progress

    extra: dict[str, Any] = {} if budget is None else {"budget": budget}
    comparison = compare_plans(
        model,
        device,
        plans=plan or (),
        train=train,
        agent=agent,
        seed=seed,
        engine=engine,
        condition=condition,
        objective=objective,
        input_shapes=shapes,
        progress=progress(quiet or not train),
        **extra,
    )
    if json:
        output.print_json(
            {
                "device": comparison.device,
                "model": comparison.model,
                "engine": comparison.engine,
                "condition": comparison.condition,
                "winner": comparison.winner,
                "rows": [
                    {k: v for k, v in msgspec.structs.asdict(row).items() if k not in LEFT_OUT}
                    for row in comparison.rows
                ],
            }
        )
        return
    from hetrl.report.tables import comparison_lines, comparison_table

    title = f"{comparison.model} on {comparison.device}, {comparison.engine}, {comparison.condition}"
    output.show(title, comparison_table(comparison), *comparison_lines(comparison))
