"""Public calls about models themselves: how good one is, and a smaller one. Plans and devices are in `hetrl.api`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hetrl.api import DEFAULT_METRIC, InputShapes

if TYPE_CHECKING:
    from hetrl.compress.recipe import Recipe
    from hetrl.compressing import CompressionResult
    from hetrl.scoring.pictures import Normalization
    from hetrl.scoring.results import Scores
    from hetrl.tuned import Finetuning


def score(
    model: str | Path,
    *,
    eval_data: str | Path | None = None,
    metric: str = DEFAULT_METRIC,
    against: str | Path | None = None,
    part: str = "all",
    normalization: Normalization | None = None,
    seed: int = 0,
    input_shapes: InputShapes | None = None,
    seeded_weights: int | None = None,
    threads: int | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Scores:
    """Measure a model's accuracy on data, and what it lost against the original that it was made from.

    Without data, the outputs of the two are compared on random inputs instead.

    :param model: zoo name, or path of an ONNX file; `against` likewise.
    :param eval_data: npz of inputs and labels, or a folder of pictures, one subfolder per class.
    :param metric: top1, top5, mse, psnr, cosine, or `module:function`, called with outputs and labels.
    :param part: `all` of the data, or one of the halves: `tuning` or `held-back`.
    :param normalization: of pictures, ImageNet's by default.
    :param seed: of the division into halves, or of the random inputs.
    :param seeded_weights: seed of weights that a model lacks.
    :param threads: of ONNX Runtime; by default it chooses.
    :param watch: called with the samples that are done, and how many there are.
    :raises HetrlError: a mistake in one of the arguments.
    """
    from hetrl.scoring.asked import Asked, scores

    asked = Asked(
        model=model,
        eval_data=None if eval_data is None else Path(eval_data),
        metric=metric,
        against=against,
        part=part,
        normalization=normalization,
        seed=seed,
        input_shapes=dict(input_shapes or {}),
        seeded_weights=seeded_weights,
        threads=threads,
    )
    return scores(asked, watch)


def compress(
    model: str | Path,
    out: str | Path,
    recipe: Recipe,
    *,
    calibration_data: str | Path | None = None,
    input_shapes: InputShapes | None = None,
    seeded_weights: int | None = None,
    finetuning: Finetuning | None = None,
    eval_data: str | Path | None = None,
    metric: str = DEFAULT_METRIC,
    normalization: Normalization | None = None,
    tell: Callable[[str], None] | None = None,
) -> CompressionResult:
    """Write a smaller model: channels pruned, layers of low rank, narrower numbers, as the recipe says.

    :param out: an ONNX file; what is there is replaced. Beyond a gigabyte its weights go to `<out>.weights`.
    :param recipe: a `hetrl.compress.recipe.Recipe`.
    :param calibration_data: `.npz` file with an array of inputs for each input of the model (or `inputs` for the only
        one), whose first axis counts samples; seeded random inputs by default.
    :param seeded_weights: seed of weights that the model lacks.
    :param finetuning: what the smaller model is trained on before its numbers are narrowed.
    :param eval_data: what it is scored on, before and after; see `score`, also for `metric` and `normalization`.
    :param tell: hears of every epoch.
    :raises HetrlError: a mistake in one of the arguments, or a model that cannot be compressed.
    """
    from hetrl.compressing import compress as run
    from hetrl.scoring.measured_drops import evaluation_of

    return run(
        model,
        Path(out),
        recipe,
        calibration_data=None if calibration_data is None else Path(calibration_data),
        input_shapes=input_shapes,
        seeded_weights=seeded_weights,
        finetuning=finetuning,
        evaluation=evaluation_of(eval_data, metric, normalization),
        tell=tell or (lambda sentence: None),
    )
