"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetrl.errors import UsageError

if TYPE_CHECKING:
    from hetrl.objective import Objective
    from hetrl.scoring.pictures import Normalization

MAX_BUDGET = 10_000_000  # evaluations; far more than a year of measuring on a phone
MAX_SEED = 2**32 - 1  # what numpy's and torch's generators take
MAX_DIGITS = 9  # of one size of an input shape

Device = Annotated[str, typer.Option("--device", metavar="NAME|FILE", help="A device's name or a device file.")]
Model = Annotated[str, typer.Option("--model", metavar="NAME|FILE", help="A built-in model's name or an ONNX file.")]
Engine = Annotated[
    str | None, typer.Option("--engine", metavar="NAME", help="Engine set to plan in (the device's default).")
]
Conditions = Annotated[
    str | None,
    typer.Option(
        "--condition",
        metavar="TEXT",
        help="The device's state (cold): cold or sigma0 to sigma4, "
        "then options: competitors=2, cache_hit=0.2, suspended=0.5, ui=90hz:3ms, ui=none; joined by commas.",
    ),
]
Agent = Annotated[str, typer.Option("--agent", metavar="NAME", help="The agent that learns.")]
Sampler = Annotated[str, typer.Option("--sampler", metavar="NAME", help="The search that proposes plans.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML or JSON file of settings, over those that suit the budget."),
]
NoSeeds = Annotated[bool, typer.Option("--no-seeds", help="Start from no hand policy and no exact plan.")]
Resume = Annotated[Path | None, typer.Option("--resume", metavar="RUN", help="Continue the run in this folder.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the run (runs/MODEL-DEVICE).")]
Budget = Annotated[
    int | None, typer.Option("--budget", metavar="N", help="Plans to measure at most (1000; 100 on real devices).")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Same seed, same plan.")]
MaxAccuracyDrop = Annotated[
    float,
    typer.Option("--max-accuracy-drop", metavar="POINTS", help="Percentage points of accuracy that may be lost."),
]
MaxFrameDrop = Annotated[
    float | None,
    typer.Option("--max-frame-drop", metavar="PCT", help="Percent of UI frames that may be dropped (any)."),
]
MaxOutputError = Annotated[
    float | None,
    typer.Option(
        "--max-output-error",
        metavar="X",
        help="How far outputs may be off on a device that runs plans: largest difference over largest value.",
    ),
]
SeededWeights = Annotated[
    int | None,
    typer.Option("--seeded-weights", min=0, metavar="SEED", help="Draw the weights that the model's file lacks."),
]
Record = Annotated[
    Path | None,
    typer.Option("--record", metavar="FILE", help="Add everything that is measured to this file, for replay:FILE."),
]
EvalData = Annotated[
    Path | None,
    typer.Option(
        "--eval-data",
        metavar="FILE|DIR",
        help="An npz file of `inputs` and `labels` (or `targets`), or a folder of pictures, one subfolder per class.",
    ),
]
Metric = Annotated[
    str,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="top1, top5, mse, psnr, cosine, or module:function, called with outputs and labels.",
    ),
]
ImageMean = Annotated[
    str | None,
    typer.Option("--image-mean", metavar="R,G,B", help="Subtracted from pictures of 0 to 1 (ImageNet's)."),
]
ImageStd = Annotated[
    str | None, typer.Option("--image-std", metavar="R,G,B", help="What they are then divided by (ImageNet's).")
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option("--input-shape", metavar="NAME:1x3x224x224", help="Shape of a symbolic input (repeatable)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]


def check_numbers(budget: int | None, seed: int) -> None:
    """Refuse a budget or a seed out of range.

    :raises UsageError: naming the range.
    """
    for name, value, low, high in (("--budget", budget, 1, MAX_BUDGET), ("--seed", seed, 0, MAX_SEED)):
        if value is not None and not low <= value <= high:
            raise UsageError(f"{name} {value} is out of range", f"give {low} to {high}")


def refuse(given: Mapping[str, object], why: str, instead: str) -> None:
    """Refuse options that do not belong to others.

    :raises UsageError: one of them is given.
    """
    for option, value in given.items():
        if value not in (None, False, []):
            raise UsageError(f"{option} {why}", instead)


def objective(
    max_accuracy_drop: float, max_frame_drop: float | None, max_output_error: float | None = None
) -> Objective:
    """Latency within the budgets as the command line gives them (points and percent)."""
    from hetrl.objective import Objective

    rate = None if max_frame_drop is None else max_frame_drop / 100
    return Objective(
        max_accuracy_drop_pct=max_accuracy_drop, max_frame_drop_rate=rate, max_output_error=max_output_error
    )


def input_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]] | None:
    """Read all `--input-shape`.

    :raises UsageError: see `parse_input_shape`; also a size out of range, an input given twice.
    """
    from hetrl.graph.inputs import parse_input_shape

    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts or ():
        if any(len(size) > MAX_DIGITS for size in text.rpartition(":")[2].split("x")):
            raise UsageError("--input-shape has a size that no tensor has", "write it like data:1x3x224x224")
        name, shape = parse_input_shape(text)
        if name in shapes:
            raise UsageError(f"--input-shape gives {name!r} twice", "give it once")
        shapes[name] = shape
    return shapes or None


def normalization(mean: str | None, std: str | None) -> Normalization | None:
    """Read `--image-mean` and `--image-std`; None where neither is given.

    :raises UsageError: no three numbers, or a deviation that is not above 0.
    """
    if mean is None and std is None:
        return None
    from hetrl.scoring.pictures import IMAGENET_MEAN, IMAGENET_STD, Normalization

    return Normalization(
        IMAGENET_MEAN if mean is None else _numbers("--image-mean", mean),
        IMAGENET_STD if std is None else _numbers("--image-std", std),
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r} is no list of numbers", "write it like 0.485,0.456,0.406") from None


def check_condition(text: str | None) -> None:
    """Refuse a malformed condition before anything heavy is imported.

    :raises UsageError: see `parse_condition`.
    """
    from hetrl.condition import parse_condition

    if text is not None:
        parse_condition(text)


def run_folder(out: Path | None, model: str, device: str) -> Path:
    """`out`, or the first free one of `runs/vgg16-d1`, `runs/vgg16-d1-2`, ..."""
    if out is not None:
        return out
    name = re.sub(r"[^\w.-]+", "_", f"{Path(model).stem}-{Path(device).stem}")
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder
