"""What is done to a model, in one order: channels pruned, layers factored, numbers narrowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec
import onnx
from onnx import inliner

from hetrl.compress.calibration import FROM_FILE, Samples, seeded_samples
from hetrl.compress.compensate import moments
from hetrl.compress.half import HalfReport, halve
from hetrl.compress.importance import Importance
from hetrl.compress.low_rank import LowRank, LowRankReport, factor
from hetrl.compress.narrow import Half
from hetrl.compress.pruning import PruningReport, prune
from hetrl.compress.quantize import Calibration, QuantizationReport, quantize
from hetrl.compress.refusal import refuse
from hetrl.compress.stages import by_stage
from hetrl.errors import UsageError
from hetrl.graph.reader import graph_from_model

LARGEST_MULTIPLE = 1024
Train = Callable[[onnx.ModelProto], onnx.ModelProto]


class Precision(StrEnum):
    """The type of the numbers; NONE leaves them as they are."""

    NONE = "none"
    INT8 = "int8"
    FP16 = "fp16"
    BF16 = "bf16"


_HALVES = {Precision.FP16: Half.FLOAT16, Precision.BF16: Half.BFLOAT16}


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is compressed.

    :param prune: share (0 to below 1) of every group of channels that goes.
    :param prune_stages: one share for each stage of the network instead (`compress.stages`).
    :param importance: by which channels are chosen.
    :param compensate: whether weights take over what lost channels carried, as far as samples of real data show it;
        nothing is learnt from random ones.
    :param multiple: that numbers of channels are rounded up to.
    :param low_rank: how layers are factored; None leaves them.
    :param calibration: how int8 finds the ranges of activations.
    :param seed: of random inputs where there are no samples.
    :raises UsageError: a share or multiple out of range, or nothing to do.
    """

    prune: float = 0.0
    prune_stages: tuple[float, ...] = ()
    importance: Importance = Importance.L1
    compensate: bool = True
    multiple: int = 4
    low_rank: LowRank | None = None
    precision: Precision = Precision.NONE
    calibration: Calibration = Calibration.MINMAX
    seed: int = 0

    def __post_init__(self) -> None:
        for ratio in (self.prune, *self.prune_stages):
            if not 0 <= ratio < 1:
                raise UsageError(f"a pruning ratio of {ratio:g} makes no sense", "0 <= ratio < 1")
        if not 1 <= self.multiple <= LARGEST_MULTIPLE:
            raise UsageError(f"channels cannot come in multiples of {self.multiple}", f"1 to {LARGEST_MULTIPLE}")
        if not self.prunes and self.low_rank is None and self.precision is Precision.NONE:
            raise UsageError("nothing is to be compressed", "give --prune, --low-rank, --int8 or the like")

    @property
    def prunes(self) -> bool:
        """Whether any channel is to go."""
        return self.prune > 0 or any(self.prune_stages)

    @property
    def needs_runtime(self) -> bool:
        """Whether the model has to run for it."""
        return self.precision is Precision.INT8 or (self.prunes and self.importance is Importance.ACTIVATION)


class Kept(msgspec.Struct, frozen=True):
    """Something that a step left as it was, and why."""

    step: str
    name: str
    reason: str


@dataclass(frozen=True)
class Compressed:
    """The model that a recipe makes, and what each step did; None for steps that were not asked for.

    :param samples: what it was calibrated with.
    """

    model: onnx.ModelProto
    pruning: PruningReport | None
    low_rank: LowRankReport | None
    quantization: QuantizationReport | None
    half: HalfReport | None
    samples: Samples | None

    @property
    def kept_whole(self) -> tuple[Kept, ...]:
        """All that stayed as it was, step by step."""
        pruned = [Kept("prune", g.name, g.reason or "") for g in self.pruning.whole] if self.pruning else []
        factored = [Kept("low_rank", left.name, left.reason) for left in self.low_rank.left] if self.low_rank else []
        float_ = self.quantization.kept if self.quantization else self.half.kept if self.half else ()
        return (*pruned, *factored, *(Kept("precision", name, reason) for name, reason in float_))


def apply(
    recipe: Recipe,
    model: onnx.ModelProto,
    samples: Samples | None = None,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    train: Train | None = None,
) -> Compressed:
    """Compress a complete model, which is not changed.

    :param samples: to calibrate with; seeded random ones by default.
    :param train: what moves the weights of the smaller model before its numbers are narrowed.
    :param input_shapes: of inputs whose sizes the model leaves open.
    :raises ModelError: the model trains, is quantized already, or is not valid.
    :raises MissingExtra: what the recipe needs is not installed.
    """
    refuse(model, model.graph.name or "the model")
    shapes = dict(input_shapes) if input_shapes else None
    if recipe.needs_runtime and samples is None:
        samples = seeded_samples(graph_from_model(model, name="model", input_shapes=shapes), recipe.seed)
    values = samples.values if samples is not None else ()
    real = samples is not None and samples.source == FROM_FILE
    pruning, low_rank, quantization, half = None, None, None, None
    fitted = False  # whether any weights took over for others
    if recipe.prunes:
        if model.functions:
            model = inliner.inline_local_functions(model)
        graph = graph_from_model(model, name="model", input_shapes=shapes)
        known = moments(model, graph, values) if real and recipe.compensate else None
        fitted = known is not None and bool(known.of)
        smaller = prune(
            model,
            by_stage(graph, recipe.prune_stages) if recipe.prune_stages else recipe.prune,
            importance=recipe.importance,
            multiple=recipe.multiple,
            inputs=values,
            input_shapes=shapes,
            known=known,
        )
        model, pruning = smaller.model, smaller.report
    if recipe.low_rank is not None:
        factored = factor(model, recipe.low_rank, input_shapes=shapes)
        model, low_rank = factored.model, factored.report
    if train is not None:
        model = train(model)
    if recipe.precision is Precision.INT8:
        quantized = quantize(model, values, calibration=recipe.calibration)
        model, quantization = quantized.model, quantized.report
    elif recipe.precision in _HALVES:
        halved = halve(model, _HALVES[recipe.precision])
        model, half = halved.model, halved.report
    used = recipe.needs_runtime or fitted
    return Compressed(model, pruning, low_rank, quantization, half, samples if used else None)
