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
    max_frame_drop: options.MaxFrameDrop = None,
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

    if max_frame_drop is not None and not lower:
        raise UsageError("--max-frame-drop is for --lower, which looks for a plan", "add --lower")
    asked = Asked(
        model=model,
        weights=weights,
        seeded_weights=seeded_weights,
        device=device,
        input_shapes=shapes,
        compressed=compressed,
        lower=lower,
        objective=options.objective(0.0, max_frame_drop),
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
    from hetrl.export.base import grouped
    from hetrl.export.settled import PLACEMENT

    size = f"{done.bytes / 1e6:.1f} MB" if done.bytes >= 1e5 else f"{done.bytes / 1e3:.1f} kB"
    lines = [f"wrote {done.out}: {len(done.files)} files, {size} ({done.format})"]
    lines += [f"lowered     {limit.field}: {limit.reason}" for limit in grouped(done.lowered)]
    lines += [f"left out    {limit.field}: {limit.reason}" for limit in grouped(done.left_out)]
    lines += [f"note        {note}" for note in done.notes]
    lines += _price(done)
    if not done.lowered and any(limit.field in PLACEMENT for limit in done.left_out):
        lines.append(f"or          --lower finds the best plan that {done.format} carries without loss")
    lines.append(f"next        hetrl validate {done.out}")
    output.show(*lines)


def _price(done: Exported) -> list[str]:
    """What is expected, beside what was expected of the given plan."""
    expected, given = done.expected, done.given
    if expected is None:
        return []
    what = f"expected    {expected.latency_ms:.4g} ms, {expected.evidence.value}, {expected.condition}"
    if given is None:
        return [what]
    change_pct = 100 * (expected.latency_ms / given.latency_ms - 1)
    lines = [f"{what}; the given plan {given.latency_ms:.4g} ms ({change_pct:+.1f} %)"]
    if expected.frame_drop_rate is not None and expected.frame_drop_rate != given.frame_drop_rate:
        before = "" if given.frame_drop_rate is None else f"; the given plan {100 * given.frame_drop_rate:.1f} %"
        lines.append(
            f"frames      {100 * expected.frame_drop_rate:.1f} % dropped, {expected.evidence.value}{before}"
            " (--lower keeps to --max-frame-drop PCT)"
        )
    return lines
