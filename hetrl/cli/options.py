"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hetrl.errors import UsageError

if TYPE_CHECKING:
    from hetrl.objective import Objective

MAX_BUDGET = 10_000_000  # evaluations; far more than a year of measuring on a phone
MAX_SEED = 2**32 - 1  # what numpy's and torch's generators take
MAX_DIMENSION = 2**31 - 1

Device = Annotated[str, typer.Option("--device", metavar="NAME|FILE", help="A device's name or a device file.")]
Model = Annotated[str, typer.Option("--model", metavar="NAME|FILE", help="A built-in model's name or an ONNX file.")]
Engine = Annotated[
    str | None, typer.Option("--engine", metavar="NAME", help="Engine set to plan in.", show_default="the device's")
]
Conditions = Annotated[
    str, typer.Option("--condition", metavar="TEXT", help="The device's state: cold; cold,ui=90hz:3ms; cold,ui=none.")
]
Agent = Annotated[str, typer.Option("--agent", metavar="NAME", help="The agent that learns.")]
Budget = Annotated[
    int | None,
    typer.Option("--budget", metavar="N", min=1, max=MAX_BUDGET, help="Plans to measure at most.", show_default="2000"),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, max=MAX_SEED, help="Same seed, same plan.")]
MaxAccuracyDrop = Annotated[
    float,
    typer.Option("--max-accuracy-drop", metavar="POINTS", help="Percentage points of accuracy that may be lost."),
]
MaxFrameDrop = Annotated[
    float | None,
    typer.Option(
        "--max-frame-drop", metavar="PCT", help="Percent of UI frames that may be dropped.", show_default="no limit"
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option("--input-shape", metavar="NAME:1x3x224x224", help="Shape of a symbolic input (repeatable)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]


def objective(max_accuracy_drop: float, max_frame_drop: float | None) -> Objective:
    """Latency within the budgets as the command line gives them (points and percent)."""
    from hetrl.objective import Objective

    rate = None if max_frame_drop is None else max_frame_drop / 100
    return Objective(max_accuracy_drop_pct=max_accuracy_drop, max_frame_drop_rate=rate)


def input_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]] | None:
    """Read `name:1x3x224x224`; a name may hold colons itself.

    :raises UsageError: another form, a dimension out of range, an input given twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts or ():
        match = re.fullmatch(r"(.+):([0-9]+(?:x[0-9]+)*)", text)
        if not match:
            raise UsageError(f"--input-shape {text!r} is not of the form name:1x3x224x224", "give one per input")
        name, shape = match[1], tuple(int(size) if len(size) < 12 else 0 for size in match[2].split("x"))
        if not all(1 <= size <= MAX_DIMENSION for size in shape):
            raise UsageError(f"--input-shape {text!r} has a dimension outside 1 to {MAX_DIMENSION}")
        if name in shapes:
            raise UsageError(f"--input-shape gives {name!r} twice", "give it once")
        shapes[name] = shape
    return shapes or None


def check_condition(text: str) -> None:
    """Refuse a malformed condition before anything heavy is imported.

    :raises UsageError: see `parse_condition`.
    """
    from hetrl.condition import parse_condition

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
