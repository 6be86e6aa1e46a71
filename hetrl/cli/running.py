"""What `hetrl train` and `hetrl search` share: from the options to the result."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from hetrl.cli import options, output
from hetrl.errors import UsageError

if TYPE_CHECKING:
    from hetrl.results import Result, Row
    from hetrl.scoring.pictures import Normalization

JSON_KEYS = (
    "run", "plan", "latency_ms", "best_hand", "exact_ms", "bound_ms", "gap_to_exact", "accuracy_drop_pct",
    "accuracy", "compressed_model",
    "frame_drop_rate", "peak_memory_mb", "energy_mj", "evaluations", "env_steps", "wall_s", "evidence", "device",
    "model", "engine", "condition", "agent", "seed", "notes",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """The options of a run, as they were given."""

    device: str
    model: str
    engine: str | None
    condition: str | None
    budget: int | None
    seed: int
    max_accuracy_drop: float
    max_frame_drop: float | None
    max_output_error: float | None
    no_seeds: bool
    config: Path | None
    resume: Path | None
    out: Path | None
    record: Path | None
    eval_data: Path | None
    metric: str
    normalization: Normalization | None
    input_shape: Sequence[str] | None
    seeded_weights: int | None
    json: bool
    quiet: bool


def run(kind: Literal["agent", "sampler"], method: str, asked: Asked) -> None:
    """Run an agent or a sampler, and print what came out.

    :raises HetrlError: a mistake in one of the options, or budgets that no plan keeps.
    """
    options.check_condition(asked.condition)
    options.check_numbers(asked.budget, asked.seed)
    objective = options.objective(asked.max_accuracy_drop, asked.max_frame_drop, asked.max_output_error)
    shapes = options.input_shapes(asked.input_shape)
    if asked.resume is not None and asked.out is not None:
        raise UsageError("--resume continues in its own folder", "leave --out away")

    from hetrl.cli.progress import progress

    call: Callable[..., Result]
    if kind == "agent":
        from hetrl.api import tune

        call = tune
    else:
        from hetrl.api import search

        call = search

    given: dict[str, Any] = {kind: method, "budget": asked.budget, "settings": asked.config}
    result = call(
        asked.model,
        asked.device,
        engine=asked.engine,
        condition=asked.condition,
        seed=asked.seed,
        objective=objective,
        seeds=not asked.no_seeds,
        input_shapes=shapes,
        seeded_weights=asked.seeded_weights,
        out=None if asked.resume else options.run_folder(asked.out, asked.model, asked.device),
        resume=asked.resume,
        record=asked.record,
        eval_data=asked.eval_data,
        metric=asked.metric,
        normalization=asked.normalization,
        progress=progress(asked.quiet),
        **{name: value for name, value in given.items() if value is not None},
    )
    if asked.json:
        output.print_json(document(result, kind))
    else:
        summarize(result, asked)
    if result.interrupted:
        raise typer.Exit(130)


def document(result: Result, kind: str) -> dict[str, Any]:
    """What `--json` prints; the method's name is under the word for its kind."""
    found = {kind if key == "agent" else key: getattr(result, key) for key in JSON_KEYS}
    return found | {"plan": result.plan_path or result.plan, "compression": str(result.plan.compression)}


def summarize(result: Result, asked: Asked) -> None:
    """The tables and lines that a person reads, with the next command to type."""
    from hetrl.report.tables import result_lines, rows_table

    def order(row: Row) -> tuple[bool, bool, float]:
        return row.policy != "learned", row.latency_ms is None, row.latency_ms or 0.0

    title = f"{result.model} on {result.device}, {result.engine}, {result.condition}"
    output.show(title, rows_table(sorted(result.rows, key=order), result.best_hand), "", *result_lines(result))
    if result.compressed_model:
        output.show(f"model      {result.compressed_model} (compressed: {result.plan.compression.shapes})")
    if result.plan_path:
        words = [word for option in _repeated(asked).items() for word in option]
        words += [word for shape in asked.input_shape or () for word in ("--input-shape", shape)]
        command = shlex.join(["hetrl", "compare", *words, "--plan", result.plan_path])
        output.show(
            f"next       hetrl plan show {shlex.quote(result.plan_path)}",
            "           hetrl export --list   (into an app)",
            f"           {command}",
        )
        if result.interrupted and result.run:
            output.show(f"           the same command with --resume {shlex.quote(result.run)} goes on")


def _repeated(asked: Asked) -> dict[str, str]:
    """The options that the next command needs as well."""
    about = {
        "--device": asked.device,
        "--model": asked.model,
        "--engine": asked.engine,
        "--condition": asked.condition,
        "--max-accuracy-drop": f"{asked.max_accuracy_drop:g}" if asked.max_accuracy_drop else None,
        "--max-output-error": None if asked.max_output_error is None else f"{asked.max_output_error:g}",
        "--seeded-weights": None if asked.seeded_weights is None else str(asked.seeded_weights),
        "--max-frame-drop": None if asked.max_frame_drop is None else f"{asked.max_frame_drop:g}",
    }
    return {option: value for option, value in about.items() if value}
