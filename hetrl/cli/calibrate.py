"""`hetrl calibrate`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetrl.cli import options, output

if TYPE_CHECKING:
    from hetrl.calibrating import Calibration

COLUMNS = {
    "plain": "plain_ms_per_gmac",
    "1x1": "pointwise_ms_per_gmac",
    "grouped": "grouped_ms_per_gmac",
    "depthwise": "depthwise_ms_per_gmac",
    "ms/MB": "ms_per_mb",
    "launch ms": "launch_ms",
}

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def calibrate(
    recordings: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recordings of one device.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.json", help="The device file (where --device looks for its own)."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="FILE", help="The ONNX file of a recorded model (repeatable)."),
    ] = None,
    input_shape: options.InputShapes = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Fit a device file to recordings, so that plans for that device are predicted before they are measured.

    Give all recordings of a device at once: of several models, those of each also tell how the others are predicted.
    How far off it is: fits to 60 % of the plans predict the others.
    """
    options.check_numbers(None, seed)
    shapes = options.input_shapes(input_shape)

    from hetrl.api import calibrate as fit

    found = fit(recordings, out=out, models=model or (), input_shapes=shapes, seed=seed)
    if json:
        output.print_json(found)
        return
    own = next((file for file in model or () if Path(file).stem == found.models[0]), found.models[0])
    show(found, out, ["--model", own, *(word for shape in input_shape or () for word in ("--input-shape", shape))])


def show(found: Calibration, out: Path | None, model: Sequence[str]) -> None:
    """The numbers of each processor, how far off predictions are, and the next command.

    :param model: how that one names its model.
    """
    from hetrl.report.tables import grid

    table = grid("processor", ">segments", *(f">{name}" for name in COLUMNS), ">leave ms", ">contention")
    for one in found.processors:
        numbers = [f"{one.cost[name]:.3g}" for name in COLUMNS.values()]
        rest = ["" if value is None else f"{value:.3g}" for value in (one.sync_ms, one.contention)]
        table.add_row(one.processor, str(one.segments), *numbers, *rest)
    output.show(
        f"{found.device}, {found.engine}: {found.runs} runs of {found.plans} plans of {', '.join(found.models)}",
        table,
        "plain to depthwise in ms per 1e9 multiply-accumulates",
        _told("plans", found.median_error),
    )
    if len(found.models) > 1:
        output.show(_told("models", found.model_median_error))
    if found.foreign:
        output.show(f"other programs ran beside {found.foreign} of {found.runs} measurements; those count half")
    device = shlex.quote(str(out)) if out else found.device
    output.show(f"wrote {found.file}", f"next       hetrl train --device {device} {shlex.join(model)}")


def _told(what: str, error: float | None) -> str:
    if error is None:
        return f"too few {what} to tell how well unseen ones are predicted"
    return f"unseen {what} are predicted within {100 * error:.1f} % (median)"
