"""`hetrl train`."""

from __future__ import annotations

import typer

from hetrl.cli import options
from hetrl.cli.running import Asked, run

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def train(  # noqa: PLR0913, PLR0917 (typer reads the options from the parameters)
    device: options.Device,
    model: options.Model,
    engine: options.Engine = None,
    condition: options.Conditions = None,
    agent: options.Agent = "auto",
    budget: options.Budget = None,
    seed: options.Seed = 0,
    max_accuracy_drop: options.MaxAccuracyDrop = 0.0,
    max_frame_drop: options.MaxFrameDrop = None,
    max_output_error: options.MaxOutputError = None,
    no_seeds: options.NoSeeds = False,
    config: options.Config = None,
    resume: options.Resume = None,
    out: options.Out = None,
    record: options.Record = None,
    eval_data: options.EvalData = None,
    metric: options.Metric = "top1",
    image_mean: options.ImageMean = None,
    image_std: options.ImageStd = None,
    input_shape: options.InputShapes = None,
    seeded_weights: options.SeededWeights = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Learn a plan for a model on a device.

    A plan says which operator runs on which processor, how it is split, how far the model is compressed and how hard
    each processor may be driven. What is found is never slower than the best hand policy (unless --no-seeds).
    """
    asked = Asked(
        device=device,
        model=model,
        engine=engine,
        condition=condition,
        budget=budget,
        seed=seed,
        max_accuracy_drop=max_accuracy_drop,
        max_frame_drop=max_frame_drop,
        max_output_error=max_output_error,
        no_seeds=no_seeds,
        config=config,
        resume=resume,
        out=out,
        record=record,
        eval_data=eval_data,
        metric=metric,
        normalization=options.normalization(image_mean, image_std),
        input_shape=input_shape,
        seeded_weights=seeded_weights,
        json=json,
        quiet=quiet,
    )
    run("agent", agent, asked)
