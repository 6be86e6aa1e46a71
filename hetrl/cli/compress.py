"""`hetrl compress`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hetrl.cli import options, output
from hetrl.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from hetrl.compress.recipe import Precision
    from hetrl.compressing import CompressionResult

SHOWN = 6  # reasons
_Name = TypeVar("_Name", bound=StrEnum)

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def compress(  # noqa: PLR0913, PLR0917 (typer reads the options from the parameters)
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A built-in model's name or an ONNX file.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The smaller model; what is there is replaced.")],
    prune: Annotated[
        str | None,
        typer.Option(
            "--prune", metavar="RATIO", help="Share of the channels to take away: 0.3, or by stage: 0.1/0.3/0.5."
        ),
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option("--importance", metavar="NAME", help="What channels are judged by (l1): l1, l2, bn, activation."),
    ] = None,
    multiple: Annotated[
        int | None, typer.Option("--multiple", metavar="N", help="Channels stay in multiples of it (4): 4, 8, 16.")
    ] = None,
    no_compensation: Annotated[
        bool, typer.Option("--no-compensation", help="Do not fit what pruning leaves to --calibration-data.")
    ] = False,
    low_rank: Annotated[
        float | None,
        typer.Option("--low-rank", metavar="KEEP", help="Factor layers to this share of their weights."),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option("--energy", metavar="KEEP", help="Factor layers, keeping this share of their squared weights."),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", metavar="N", help="Factor layers to this rank.")] = None,
    low_rank_scheme: Annotated[
        str | None,
        typer.Option("--low-rank-scheme", metavar="NAME", help="For windows (narrow): narrow, tucker, spatial."),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="int8 weights and activations.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="float16 weights and activations.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16 weights, computed in float32.")] = False,
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", metavar="NAME", help="Ranges of int8 (minmax): minmax, entropy, percentile."),
    ] = None,
    calibration_data: Annotated[
        Path | None,
        typer.Option(
            "--calibration-data", metavar="FILE", help="Inputs as .npz (seeded random ones); pruning is fitted to them."
        ),
    ] = None,
    finetune: Annotated[
        int | None,
        typer.Option("--finetune", metavar="EPOCHS", help="Train the smaller model, with the original as its teacher."),
    ] = None,
    train_data: Annotated[
        Path | None,
        typer.Option("--train-data", metavar="FILE|DIR", help="What it is trained on; in the form of --eval-data."),
    ] = None,
    eval_data: options.EvalData = None,
    metric: options.Metric = "top1",
    image_mean: options.ImageMean = None,
    image_std: options.ImageStd = None,
    input_shape: options.InputShapes = None,
    seeded_weights: options.SeededWeights = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of random inputs.")] = 0,
    json: options.Json = False,
) -> None:
    """Make a smaller model: fewer channels, layers of low rank, narrower numbers; in that order.

    The result is a valid ONNX file. How far its outputs are from the original's is measured where ONNX Runtime is
    installed; accuracy is another matter, and after pruning or low rank it wants training.
    """
    options.check_numbers(None, seed)
    shapes = options.input_shapes(input_shape)
    if prune is None:
        pruning = {"--importance": importance, "--multiple": multiple, "--no-compensation": no_compensation or None}
        options.refuse(pruning, "is for pruning", "add --prune RATIO")
    factors = any(amount is not None for amount in (low_rank, energy, rank))
    if not factors:
        options.refuse({"--low-rank-scheme": low_rank_scheme}, "is for low rank", "add --low-rank KEEP")
    if not int8:
        options.refuse({"--calibration": calibration}, "is for int8", "add --int8")
    if finetune is None:
        options.refuse({"--train-data": train_data}, "is for fine-tuning", "add --finetune EPOCHS")
    elif prune is None and not factors:
        raise UsageError("there is nothing to train away", "add --prune RATIO or --low-rank KEEP")
    pictures = options.normalization(image_mean, image_std)

    from hetrl.cli.progress import say
    from hetrl.compress.importance import Importance
    from hetrl.compress.low_rank import LowRank, Scheme
    from hetrl.compress.quantize import Calibration
    from hetrl.compress.recipe import Recipe
    from hetrl.model_api import compress as run
    from hetrl.tuned import finetuning_of

    ratios = tuple(_ratio(text) for text in prune.split("/")) if prune is not None else (0.0,)
    by_rank = None
    if factors:
        scheme = _one_of(Scheme, low_rank_scheme or "narrow", "low-rank scheme")
        by_rank = LowRank(keep=low_rank, energy=energy, rank=rank, scheme=scheme)
    recipe = Recipe(
        prune=ratios[0] if len(ratios) == 1 else 0.0,
        prune_stages=ratios if len(ratios) > 1 else (),
        importance=_one_of(Importance, "batch_norm" if importance == "bn" else importance or "l1", "importance"),
        compensate=not no_compensation,
        multiple=4 if multiple is None else multiple,
        low_rank=by_rank,
        precision=_precision({"int8": int8, "fp16": fp16, "bf16": bf16}),
        calibration=_one_of(Calibration, calibration or "minmax", "calibration"),
        seed=seed,
    )
    found = run(
        model,
        out,
        recipe,
        calibration_data=calibration_data,
        input_shapes=shapes,
        seeded_weights=seeded_weights,
        finetuning=None if finetune is None else finetuning_of(finetune, train_data, seed, pictures),
        eval_data=eval_data,
        metric=metric,
        normalization=pictures,
        tell=say,
    )
    if json:
        output.print_json(found)
        return
    show(found)


def _ratio(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"the pruning ratio {text!r} is no number", "--prune 0.3, or --prune 0.1/0.3/0.5") from None


def _one_of(names: type[_Name], name: str, kind: str) -> _Name:
    try:
        return names(name)
    except ValueError:
        raise UnknownName(kind, name, [known.value for known in names], "hetrl compress --help") from None


def _precision(asked: Mapping[str, bool]) -> Precision:
    from hetrl.compress.recipe import Precision

    names = [name for name, wanted in asked.items() if wanted]
    if len(names) > 1:
        raise UsageError(
            f"a model is of one type, not of {' and '.join(names)}", f"give one of --{' and --'.join(names)}"
        )
    return Precision(names[0]) if names else Precision.NONE


def show(found: CompressionResult) -> None:
    """What changed, what stayed and why, and the next command."""
    from hetrl.report.tables import grid, number

    table = grid("", ">before", ">after", ">left")
    for name, change, unit in (
        ("parameters", found.parameters, 1e6),
        ("GMACs", found.gmacs, 1),
        ("size in MB", found.size_mb, 1),
    ):
        share = f"{100 * change.after / change.before:.1f} %" if change.before else ""
        text = [f"{number(value / unit)}{' M' if unit > 1 else ''}" for value in (change.before, change.after)]
        table.add_row(name, *text, share)
    output.show(table, "", *_lines(found))


def _lines(found: CompressionResult) -> list[str]:
    from hetrl.accuracy import drop_words

    lines = []
    if found.recipe.prunes:
        lines.append(f"pruned     {found.groups_pruned} groups of channels")
    if found.recipe.low_rank is not None:
        lines.append(f"factored   {found.layers_factored} layers")
    numbers = found.numbers
    if numbers.stored != "float32":
        computed = "" if numbers.computed == numbers.stored else f", computed in {numbers.computed}"
        lines.append(f"numbers    {numbers.stored}{computed}")
    if found.calibration is not None:
        lines.append(f"calibrated with {found.calibration.samples} samples: {found.calibration.source}")
    if found.finetuned is not None:
        tuned = found.finetuned
        right = (
            ""
            if tuned.right_after is None
            else f", {100 * (tuned.right_before or 0.0):.1f} -> {100 * tuned.right_after:.1f} % right"
        )
        loss = f"{tuned.loss_before:.3g} -> {tuned.loss_after:.3g}"
        lines.append(f"trained    epoch {tuned.best} of {tuned.epochs}: validation loss {loss}{right}")
        lines += [f"note       {note}" for note in tuned.notes]
    if found.scores is not None:
        seen = found.scores
        told = drop_words(seen.drop.metric, seen.drop.points, seen.drop.interval)
        lines.append(
            f"accuracy   {seen.original.value:.2f} -> {seen.compressed.value:.2f}: {told} on {seen.drop.count} samples "
            f"({seen.drop.evidence.value})"
        )
    if found.output_error is None:
        lines.append("output error unknown: ONNX Runtime is not there, or does not run the original")
    else:
        lines.append(f"output error {found.output_error:.3g} of the largest value, on seeded inputs ({found.evidence})")
    reasons = Counter((kept.step, kept.reason) for kept in found.kept_whole)
    for (step, reason), count in reasons.most_common(SHOWN):
        first = next(kept.name for kept in found.kept_whole if (kept.step, kept.reason) == (step, reason))
        lines.append(f"kept whole {first}{f' and {count - 1} more' if count > 1 else ''} ({step}): {reason}")
    if len(reasons) > SHOWN:
        lines.append(f"kept whole, for {len(reasons) - SHOWN} further reasons: --json lists them")
    return [*lines, f"wrote      {found.out}", f"next       hetrl compare --device d1 --model {shlex.quote(found.out)}"]
