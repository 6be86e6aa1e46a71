"""`hetrl train`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hetrl.cli import options, output
from hetrl.errors import UsageError

if TYPE_CHECKING:
    from hetrl.results import Result, Row

JSON_KEYS = (
    "run", "plan", "latency_ms", "best_hand", "exact_ms", "bound_ms", "gap_to_exact", "accuracy_drop_pct",
    "frame_drop_rate", "peak_memory_mb", "energy_mj", "evaluations", "env_steps", "wall_s", "evidence", "device",
    "model", "engine", "condition", "agent", "seed",
)  # fmt: skip

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def train(  # noqa: PLR0913, PLR0917 (typer reads the options from the parameters)
    device: options.Device,
    model: options.Model,
    engine: options.Engine = None,
    condition: options.Conditions = "cold",
    agent: options.Agent = "maskable-ppo",
    budget: options.Budget = None,
    seed: options.Seed = 0,
    max_accuracy_drop: options.MaxAccuracyDrop = 0.0,
    max_frame_drop: options.MaxFrameDrop = None,
    no_seeds: Annotated[bool, typer.Option("--no-seeds", help="Start from no hand policy and no exact plan.")] = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Continue the run in this folder.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for the run (runs/MODEL-DEVICE)."),
    ] = None,
    input_shape: options.InputShapes = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Learn a plan for a model on a device.

    A plan says which operator runs on which processor, how it is split, how far the model is compressed and how hard
    each processor may be driven. What is found is never slower than the best hand policy (unless --no-seeds).
    """
    options.check_condition(condition)
    options.check_numbers(budget, seed)
    objective = options.objective(max_accuracy_drop, max_frame_drop)
    shapes = options.input_shapes(input_shape)
    if resume is not None and out is not None:
        raise UsageError("--resume continues in its own folder", "leave --out away")

    from hetrl.api import tune
    from hetrl.cli.progress import progress

    extra: dict[str, Any] = {} if budget is None else {"budget": budget}
    result = tune(
        model,
        device,
        engine=engine,
        condition=condition,
        agent=agent,
        seed=seed,
        objective=objective,
        seeds=not no_seeds,
        input_shapes=shapes,
        out=None if resume else options.run_folder(out, model, device),
        resume=resume,
        progress=progress(quiet),
        **extra,
    )
    if json:
        output.print_json(document(result))
    else:
        asked = {
            "--device": device,
            "--model": model,
            "--engine": engine,
            "--condition": None if condition == "cold" else condition,
            "--max-accuracy-drop": f"{max_accuracy_drop:g}" if max_accuracy_drop else None,
            "--max-frame-drop": None if max_frame_drop is None else f"{max_frame_drop:g}",
        }
        summarize(result, {option: value for option, value in asked.items() if value}, input_shape)
    if result.interrupted:
        raise typer.Exit(130)


def document(result: Result) -> dict[str, Any]:
    """What `--json` prints."""
    found = {key: getattr(result, key) for key in JSON_KEYS}
    return found | {"plan": result.plan_path or result.plan}


def summarize(result: Result, asked: dict[str, str], input_shape: Sequence[str] | None) -> None:
    """The tables and lines that a person reads; `asked` are the options that the next command needs as well."""
    from hetrl.report.tables import result_lines, rows_table

    def order(row: Row) -> tuple[bool, bool, float]:
        return row.policy != "learned", row.latency_ms is None, row.latency_ms or 0.0

    title = f"{result.model} on {result.device}, {result.engine}, {result.condition}"
    output.show(title, rows_table(sorted(result.rows, key=order), result.best_hand), "", *result_lines(result))
    if result.plan_path:
        words = [word for option in asked.items() for word in option]
        words += [word for shape in input_shape or () for word in ("--input-shape", shape)]
        command = shlex.join(["hetrl", "compare", *words, "--plan", result.plan_path])
        output.show(f"next       hetrl plan show {shlex.quote(result.plan_path)}", f"           {command}")
        if result.interrupted and result.run:
            output.show(f"           the same command with --resume {shlex.quote(result.run)} goes on")
