"""`hetrl export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetrl.cli import options, output
from hetrl.errors import UsageError

if TYPE_CHECKING:
    from hetrl.exporting import Exported

app = typer.Typer(add_completion=False, rich_markup_mode=None)

Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="ONNX or npz file with the model's weights, by their names."),
]


@app.command()
def export(  # noqa: PLR0913, PLR0917 (typer reads the options from the parameters)
    plan: Annotated[Path | None, typer.Argument(metavar="PLAN", help="A plan, as `hetrl train` writes it.")] = None,
    format_name: Annotated[str | None, typer.Option("--format", metavar="NAME", help="What to write.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR|FILE.zip", help="A new folder, or a new zip file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME|FILE", help="The plan's model, if it is no built-in one.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="FILE", help="The plan's device, if it is no built-in one.")
    ] = None,
    weights: Weights = None,
    seeded_weights: options.SeededWeights = None,
    compressed: Annotated[
        Path | None,
        typer.Option("--compressed", metavar="FILE", help="The run's model.onnx, if it is not beside the plan."),
    ] = None,
    lower: Annotated[
        bool, typer.Option("--lower", help="Export the best plan that the format can carry, and say its price.")
    ] = False,
    annotate: Annotated[
        bool, typer.Option("--annotate", help="onnxruntime: one annotated model instead of a session a segment.")
    ] = False,
    input_shape: options.InputShapes = None,
    list_formats: Annotated[bool, typer.Option("--list", help="Print the formats and exit.")] = False,
    json: options.Json = False,
) -> None:
    """Write a plan as what a runtime loads.

    A bundle is a folder with a manifest, the files, a README and a sample with its right answer. What the format cannot
    carry is said.
    """
    if list_formats:
        _list(json)
        return
    if plan is None or format_name is None or out is None:
        raise UsageError("export takes a plan, --format and --out", "`hetrl export --list` lists the formats")
    if annotate:
        if format_name != "onnxruntime":
            raise UsageError(f"--annotate is for the format onnxruntime, not {format_name}", "leave it away")
        format_name = "onnxruntime-annotated"
    shapes = options.input_shapes(input_shape)

    from hetrl.exporting import Asked
    from hetrl.exporting import export as write

    asked = Asked(
        model=model,
        weights=weights,
        seeded_weights=seeded_weights,
        device=device,
        input_shapes=shapes,
        compressed=compressed,
        lower=lower,
    )
    done = write(plan, format_name, out, asked)
    if json:
        output.print_json(done)
        return
    _show(done)


def _list(json: bool) -> None:
    from hetrl.export.base import exporters

    found = exporters()
    if json:
        output.print_json({"formats": [{"name": e.name, "summary": e.summary, "runs_here": e.runs} for e in found]})
        return
    width = max(len(e.name) for e in found)
    output.show(*(f"{e.name:<{width}}  {e.summary}" for e in found))


def _show(done: Exported) -> None:
    size = f"{done.bytes / 1e6:.1f} MB" if done.bytes >= 1e5 else f"{done.bytes / 1e3:.1f} kB"
    lines = [f"wrote {done.out}: {len(done.files)} files, {size} ({done.format})"]
    for limit in done.lowered:
        lines.append(f"lowered     {limit.field}: {limit.reason}")
    for limit in done.left_out:
        lines.append(f"left out    {limit.field}: {limit.reason}")
    lines += [f"note        {note}" for note in done.notes]
    expected = done.expected
    if expected is not None:
        price = ""
        if done.original_ms:
            change_pct = 100 * (expected.latency_ms / done.original_ms - 1)
            price = f", the given plan {done.original_ms:.4g} ms ({change_pct:+.1f} %)"
        lines.append(
            f"expected    {expected.latency_ms:.4g} ms, {expected.evidence.value}, {expected.condition}{price}"
        )
    lines.append(f"next        hetrl validate {done.out}")
    output.show(*lines)
