"""`hetrl compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from hetrl.cli import options, output
from hetrl.cli.compare_all import compare_all
from hetrl.compression import parse_compression
from hetrl.errors import Infeasible, UsageError

if TYPE_CHECKING:
    from hetrl.results import Comparison

LEFT_OUT = {"segments", "fallbacks"}  # of each row: `hetrl measure` tells them
ALL = "For --all: "

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def compare(  # noqa: PLR0913, PLR0917 (typer reads the options from the parameters)
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME|FILE", help="A device's name or a device file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME|FILE", help="A built-in model's name or an ONNX file.")
    ] = None,
    plan: Annotated[
        list[Path] | None, typer.Option("--plan", metavar="FILE", help="A plan file to compare as well (repeatable).")
    ] = None,
    compress: Annotated[
        list[str] | None,
        typer.Option(
            "--compress",
            metavar="SPEC",
            help="Also the hand policies on the compressed model (repeatable): prune=0.3,low-rank=0.5,multiple=8.",
        ),
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Learn a plan first, and compare it as `learned`.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say where the winner wins against the next slower plan.")
    ] = False,
    against: Annotated[
        str | None, typer.Option("--against", metavar="POLICY", help="Explain against this row of the table instead.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Compare on all devices and models, in parallel.")] = False,
    devices: Annotated[
        str | None, typer.Option("--devices", metavar="A,B", help=f"{ALL}only these devices (all built-in ones).")
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", metavar="A,B", help=f"{ALL}only these models (all built-in ones).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help=f"{ALL}folder to write to, or to go on in where a sweep stopped (runs/sweep)."
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", help=f"{ALL}pairs to compare at a time (one per core).")
    ] = None,
    engine: options.Engine = None,
    condition: options.Conditions = None,
    agent: options.Agent = "auto",
    budget: options.Budget = None,
    seed: options.Seed = 0,
    max_accuracy_drop: options.MaxAccuracyDrop = 0.0,
    max_frame_drop: options.MaxFrameDrop = None,
    max_output_error: options.MaxOutputError = None,
    input_shape: options.InputShapes = None,
    seeded_weights: options.SeededWeights = None,
    record: options.Record = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare hand policies, the exact optimum and learned plans.

    Learns only with --train. With --all, for every pair of a device and a model: writes CSV, markdown and a heat map.
    """
    options.check_condition(condition)
    options.check_numbers(budget, seed)
    objective = options.objective(max_accuracy_drop, max_frame_drop, max_output_error)
    shapes = options.input_shapes(input_shape)
    compressions = [parse_compression(text) for text in compress or ()]
    if budget is not None and not train:
        raise UsageError("--budget is for learning", "add --train")
    asked: dict[str, Any] = {
        "train": train, "agent": agent, "seed": seed, "engine": engine, "condition": condition, "objective": objective,
    }  # fmt: skip
    if budget is not None:
        asked["budget"] = budget
    if every:
        single = {
            "--device": device, "--model": model, "--plan": plan, "--explain": explain, "--against": against,
            "--compress": compress, "--input-shape": input_shape, "--seeded-weights": seeded_weights,
            "--record": record,
        }  # fmt: skip
        options.refuse(single, "is for one device and model", "leave it or --all away (--devices and --models choose)")
        asked["condition"] = condition or "cold"
        compare_all(devices, models, out, jobs, asked, json=json, quiet=quiet)
        return
    options.refuse(
        {"--devices": devices, "--models": models, "--out": out, "--jobs": jobs}, "is for a sweep", "add --all"
    )
    if device is None or model is None:
        missing = "--device" if device is None else "--model"
        raise UsageError(f"missing option '{missing}'", "give --device and --model, or --all")

    from hetrl.api import compare as compare_plans
    from hetrl.cli.progress import progress

    comparison = compare_plans(
        model,
        device,
        plans=plan or (),
        compressions=compressions,
        input_shapes=shapes,
        seeded_weights=seeded_weights,
        record=record,
        explain=explain,
        against=against,
        progress=progress(quiet or not train),
        **asked,
    )
    if json:
        output.print_json(document(comparison))
    else:
        show(comparison, explained=explain or against is not None)
    if comparison.infeasible is not None:
        raise Infeasible(comparison.infeasible)


def document(comparison: Comparison) -> dict[str, Any]:
    """What `--json` prints."""
    rows = [{k: v for k, v in msgspec.structs.asdict(row).items() if k not in LEFT_OUT} for row in comparison.rows]
    return msgspec.structs.asdict(comparison) | {"rows": rows}


def show(comparison: Comparison, *, explained: bool) -> None:
    """The tables and lines that a person reads."""
    from hetrl.report.comparison import comparison_lines, comparison_table

    title = f"{comparison.model} on {comparison.device}, {comparison.engine}, {comparison.condition}"
    output.show(title, comparison_table(comparison, output.width()), *comparison_lines(comparison))
    if comparison.explain is not None:
        from hetrl.report.explain import spent_table, stretches_table

        told = comparison.explain
        output.show("", spent_table(told), "", stretches_table(told), "", f"why        {told.conclusion}")
    elif explained:
        output.show("why        there is no slower plan that keeps the budgets; --against names another row")
