"""What `hetrl compress` does: a model becomes a smaller file, and numbers that say how much smaller and how far off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx
from onnx import TensorProto

from hetrl.compress.calibration import read_samples
from hetrl.compress.recipe import Compressed, Kept, Recipe, apply
from hetrl.compress.refusal import refuse
from hetrl.compress.running import has_runtime, require_runtime, run_all
from hetrl.compress.weights import complete_model, save_model
from hetrl.errors import ModelError, UsageError
from hetrl.fidelity import largest_error, seeded_inputs
from hetrl.graph import OperatorGraph
from hetrl.graph.protofile import external_location
from hetrl.graph.reader import graph_from_model
from hetrl.plan import Evidence
from hetrl.scoring.data import EvalData
from hetrl.scoring.evaluate import compare, score
from hetrl.scoring.interface import interface
from hetrl.scoring.measured_drops import Evaluation
from hetrl.scoring.metrics import Metric, find_metric
from hetrl.scoring.opening import open_data
from hetrl.scoring.pictures import IMAGENET
from hetrl.scoring.results import Drop, Score
from hetrl.tuned import Finetuning, Trainer, Tuned
from hetrl.zoo import names
from hetrl.zoo.resolve import is_model_path
from hetrl.zoo.source import FileSource, ModelSource, open_source

ERROR_SEED = 1000  # added to the recipe's, so that no model is judged by what it was calibrated with
ERROR_SAMPLES = 2


class Change(msgspec.Struct, frozen=True):
    """A number of the model before and after."""

    before: float
    after: float


class Numbers(msgspec.Struct, frozen=True):
    """Types of the result's numbers: of its weights in the file, and of what operators compute with."""

    stored: str
    computed: str


class Calibrated(msgspec.Struct, frozen=True):
    """With what it was calibrated: a file, or seeded random inputs, which say nothing about real data."""

    source: str
    samples: int


class CompressionResult(msgspec.Struct, frozen=True, kw_only=True):
    """A compressed model's file, and what became of the model.

    :param sha256: of what was written.
    :param size_mb: of the model's file with all weights, in 1e6 bytes.
    :param gmacs: 1e9 multiply-accumulates of one inference.
    :param output_error: largest difference of outputs over the original's largest value, on seeded inputs; `evidence`
        is the word for it. Both None where ONNX Runtime is not installed or does not run the original.
    :param groups_pruned, layers_factored: how many.
    :param finetuned: how training went, if it was asked for.
    :param scores: on evaluation data, if there are any.
    :param kept_whole: what steps left as it was, and why.
    """

    model: str
    out: str
    sha256: str
    recipe: Recipe
    parameters: Change
    gmacs: Change
    size_mb: Change
    output_error: float | None
    evidence: Evidence | None
    numbers: Numbers
    calibration: Calibrated | None
    groups_pruned: int
    layers_factored: int
    finetuned: Tuned | None
    scores: Compared | None
    kept_whole: tuple[Kept, ...]


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """The metric on the user's data before and after."""

    original: Score
    compressed: Score
    drop: Drop


@dataclass(frozen=True)
class Scorer:
    """Data that a model and what is made of it are scored on."""

    model: onnx.ModelProto
    data: EvalData
    metric: Metric

    @classmethod
    def of(cls, asked: Evaluation, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None) -> Scorer:
        data = open_data(asked.data, interface(model, dict(shapes or {})), asked.normalization or IMAGENET)
        found = cls(model, data, find_metric(asked.metric))
        score(model, data, found.metric)  # what is wrong with the data is said before anything is compressed
        return found

    def compared(self, smaller: onnx.ModelProto) -> Compared:
        after, before, drop = compare(smaller, self.model, self.data, self.metric)
        return Compared(original=before, compressed=after, drop=drop)


def compress(  # noqa: PLR0913 - as public calls
    model: str | Path,
    out: Path,
    recipe: Recipe,
    *,
    calibration_data: Path | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    seeded_weights: int | None = None,
    finetuning: Finetuning | None = None,
    evaluation: Evaluation | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> CompressionResult:
    """See `hetrl.model_api.compress`."""
    shapes = dict(input_shapes) if input_shapes else None
    if recipe.needs_runtime:
        require_runtime("int8 and activations")
    if str(model) not in names() and is_model_path(str(model)):
        refuse(FileSource(Path(model)).model, str(model))  # before anything is said of its shapes
    source, graph = open_source(model, seeded_weights, shapes)
    _check_out(out, model, source)
    if calibration_data is not None and not recipe.needs_runtime:
        if not (recipe.prunes and recipe.compensate):
            raise UsageError(
                "nothing is calibrated without fitted pruning, int8 or activations", "leave --calibration-data away"
            )
        require_runtime("fitting what pruning leaves")
    samples = read_samples(calibration_data, graph) if calibration_data is not None else None
    complete = complete_model(source)
    trainer = None if finetuning is None else Trainer(finetuning, complete, shapes or {}, tell)
    scorer = (
        None if evaluation is None else Scorer.of(evaluation, complete, shapes)
    )  # says at once what is wrong with the data
    done = apply(recipe, complete, samples, input_shapes=shapes, train=trainer)
    after = graph_from_model(done.model, name=out.stem, input_shapes=shapes)
    digest = save_model(done.model, out)  # before anything else can fail: training may have taken hours
    error = _output_error(complete, done.model, graph, recipe.seed)
    scores = None if scorer is None else scorer.compared(done.model)
    return CompressionResult(
        model=str(model),
        out=str(out),
        sha256=digest,
        recipe=recipe,
        parameters=Change(graph.parameters, after.parameters),
        gmacs=Change(graph.macs / 1e9, after.macs / 1e9),
        size_mb=Change(complete.ByteSize() / 1e6, done.model.ByteSize() / 1e6),
        output_error=error,
        evidence=None if error is None else Evidence.MEASURED,
        numbers=_numbers(done),
        calibration=None if done.samples is None else Calibrated(done.samples.source, len(done.samples.values)),
        groups_pruned=sum(group.share > 0 for group in done.pruning.groups) if done.pruning else 0,
        layers_factored=len(done.low_rank.factored) if done.low_rank else 0,
        finetuned=None if trainer is None else trainer.report,
        scores=scores,
        kept_whole=done.kept_whole,
    )


def _check_out(out: Path, model: str | Path, source: ModelSource) -> None:
    """Refuse, before anything is computed, a place that cannot be written to or that holds the model itself."""
    if not out.parent.is_dir():
        raise UsageError(f"the folder {out.parent} does not exist", "make it, or give another --out")
    if out.is_dir():
        raise UsageError(f"{out} is a folder", "give a file, --out small.onnx")
    if not isinstance(source, FileSource):
        return
    places = [Path(model)]
    for tensor in source.model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and (found := external_location(tensor, Path(model).parent)):
            places.append(found[0])
    written = {out.resolve(), out.with_name(f"{out.name}.weights").resolve()}
    if written & {place.resolve() for place in places}:
        raise UsageError(f"{out} would overwrite the model that it is made of", "give another --out")


def _output_error(original: onnx.ModelProto, result: onnx.ModelProto, graph: OperatorGraph, seed: int) -> float | None:
    """How far the result's outputs are from the original's; None where the original does not run here."""
    if not has_runtime():
        return None
    samples = [seeded_inputs(graph, seed + ERROR_SEED + index) for index in range(ERROR_SAMPLES)]
    try:
        exact, found = run_all(original, samples), run_all(result, samples)
    except ModelError:
        return None
    return max(largest_error(one, other) for one, other in zip(found, exact, strict=True))


def _numbers(done: Compressed) -> Numbers:
    if done.half is not None:
        return Numbers(done.half.stored, done.half.computed)
    return Numbers("int8", "int8") if done.quantization is not None else Numbers("float32", "float32")
