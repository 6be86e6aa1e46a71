"""`hetrl score`."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from hetrl.cli import options, output

EVERY_S = 3.0  # between two lines of progress

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def score(  # noqa: PLR0913, PLR0917 (typer reads the options from the parameters)
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file, or a built-in model's name.")],
    eval_data: options.EvalData = None,
    metric: options.Metric = "top1",
    against: Annotated[
        str | None, typer.Option("--against", metavar="ORIGINAL", help="The model that MODEL was made from.")
    ] = None,
    part: Annotated[
        str, typer.Option("--part", metavar="NAME", help="all of the data, or one of its halves: tuning, held-back.")
    ] = "all",
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Of the division into halves, or of the random inputs.")
    ] = 0,
    image_mean: options.ImageMean = None,
    image_std: options.ImageStd = None,
    input_shape: options.InputShapes = None,
    seeded_weights: options.SeededWeights = None,
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", help="Of ONNX Runtime (its choice).")] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a model's accuracy, and what it lost against the original.

    Without --eval-data, outputs are compared with the original's on random inputs: that is fidelity, not accuracy.
    """
    options.check_numbers(None, seed)
    shapes = options.input_shapes(input_shape)
    normalization = options.normalization(image_mean, image_std)

    from hetrl.model_api import score as score_model

    found = score_model(
        model,
        eval_data=eval_data,
        metric=metric,
        against=against,
        part=part,
        normalization=normalization,
        seed=seed,
        input_shapes=shapes,
        seeded_weights=seeded_weights,
        threads=threads,
        watch=None if quiet else Teller(),
    )
    if json:
        output.print_json(found)
        return
    from hetrl.report.scores import scores_lines, scores_table

    if found.score is not None:
        output.show(scores_table(found), "")
    output.show(*scores_lines(found))


class Teller:
    """A line on stderr now and then, for what takes longer."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= EVERY_S:
            self._last = now
            print(f"scoring: {done}/{total} samples", file=sys.stderr, flush=True)
