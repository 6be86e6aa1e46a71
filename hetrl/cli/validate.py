"""`hetrl validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hetrl.cli import options, output

app = typer.Typer(add_completion=False, rich_markup_mode=None)
WORDS = {True: "ok", False: "FAILED", None: "-"}


@app.command()
def validate(
    path: Annotated[Path, typer.Argument(metavar="PLAN|BUNDLE", help="A plan file, or what `hetrl export` wrote.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME|FILE", help="The plan's model, if it is no built-in one.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME|FILE", help="Replay a plan there (on its own device).")
    ] = None,
    input_shape: options.InputShapes = None,
    seeded_weights: options.SeededWeights = None,
    json: options.Json = False,
) -> int:
    """Replay a plan or a bundle, one line a check.

    Is it whole, does its runtime load it, are its outputs the model's, did operators run where they should, does it
    keep its promise? Exits with 1 if a check fails; `-` is what cannot be checked here.
    """
    shapes = options.input_shapes(input_shape)

    from hetrl.export.bundle import is_bundle
    from hetrl.validating import validate_bundle, validate_plan

    if is_bundle(path):
        own = {"--model": model, "--device": device, "--input-shape": input_shape, "--seeded-weights": seeded_weights}
        options.refuse(own, "is for plans; a bundle holds all that it needs", "leave it away")
        found = validate_bundle(path)
    else:
        found = validate_plan(path, model, device, input_shapes=shapes, seeded_weights=seeded_weights)
    if json:
        output.print_json(found)
    else:
        width = max(len(check.name) for check in found.checks)
        output.show(*(f"{WORDS[check.ok]:<7} {check.name:<{width}}  {check.detail}" for check in found.checks))
    return 0 if found.ok else 1
