"""Measured: a model's metric on data, and what it lost against another model on the same samples."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import onnx

from hetrl.compress.weights import complete_model
from hetrl.errors import ModelError, UsageError
from hetrl.scoring import cached
from hetrl.scoring.data import EvalData
from hetrl.scoring.interface import interface
from hetrl.scoring.metrics import Metric, Summary
from hetrl.scoring.results import Drop, Score
from hetrl.scoring.running import Watch, outputs, runtime_version
from hetrl.zoo.source import FileSource

Model = onnx.ModelProto | Path


def score(
    model: Model, data: EvalData, metric: Metric, *, threads: int | None = None, watch: Watch | None = None
) -> Score:
    """Measure a model on data, in ONNX Runtime on the CPU.

    :param model: complete, or the path of an ONNX file with its weights.
    :param threads: of the runtime; by default it chooses.
    :param watch: called with the samples that are done, and how many there are.
    :raises UsageError: data or metric do not fit the model; a metric of the user's own raised.
    :raises ModelError: the model does not run, or gives no numbers.
    :raises MissingExtra: ONNX Runtime is not installed.
    """
    return scored(summarize(model, data, metric, threads=threads, watch=watch), data, metric)


def compare(
    model: Model,
    original: Model,
    data: EvalData,
    metric: Metric,
    *,
    threads: int | None = None,
    watch: Watch | None = None,
) -> tuple[Score, Score, Drop]:
    """The scores of a model and of the original that it was made from, and the drop between them."""
    before = summarize(original, data, metric, threads=threads, watch=watch)
    after = summarize(model, data, metric, threads=threads, watch=watch)
    return scored(after, data, metric), scored(before, data, metric), dropped(before, after, data, metric)


def summarize(
    model: Model, data: EvalData, metric: Metric, *, threads: int | None = None, watch: Watch | None = None
) -> Summary:
    """What scores and drops are made from; from the cache where the same model met the same data before."""
    model = complete_model(FileSource(model)) if isinstance(model, Path) else model
    key = _key(model, data, metric)
    found = cached.known(key) if metric.cacheable else None
    if found is not None:
        return found
    parts = outputs(model, data, threads=threads, watch=watch)
    first = next(parts)
    metric.check(data, model.graph.output[0].name, first[1])
    found = metric.summary(itertools.chain([first], parts), data)
    if metric.cacheable:
        cached.keep(key, found)
    return found


def scored(summary: Summary, data: EvalData, metric: Metric) -> Score:
    """The score that a summary of these data makes."""
    return Score(
        metric=metric.name,
        value=summary.value,
        unit=metric.unit,
        larger_is_better=metric.larger_is_better,
        interval=metric.interval(summary),
        count=len(data),
        runtime=runtime_version(),
    )


def dropped(original: Summary, other: Summary, data: EvalData, metric: Metric) -> Drop:
    """The drop from one summary to another of the same data.

    :raises UsageError: the original's value is zero, and the metric's drops are relative.
    """
    points, bounds = metric.drop(original, other)
    return Drop(metric=metric.name, points=points, interval=bounds, count=len(data))


def require_same_inputs(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Whether the same data can be fed to both.

    :raises UsageError: they have other inputs.
    """
    one, other = interface(model), interface(original)
    if [spec.name for spec in one.inputs] != [spec.name for spec in other.inputs]:
        names = [", ".join(spec.name for spec in side.inputs) for side in (one, other)]
        raise UsageError(f"the models' inputs differ: {names[0]} and {names[1]}", "--against takes the original model")
    for mine, theirs in zip(one.inputs, other.inputs, strict=True):
        fits = len(mine.shape) == len(theirs.shape) and all(
            None in sizes or len(set(sizes)) == 1 for sizes in zip(mine.shape[1:], theirs.shape[1:], strict=True)
        )
        if mine.dtype != theirs.dtype or not fits:
            raise UsageError(
                f"the models' inputs {mine.name!r} differ: {mine.dtype} of {mine.words}, "
                f"{theirs.dtype} of {theirs.words}",
                "--against takes the original model",
            )


def _key(model: onnx.ModelProto, data: EvalData, metric: Metric) -> str:
    try:
        content = model.SerializeToString(deterministic=True)
    except ValueError:  # beyond protobuf's 2 GiB
        raise ModelError("the model is larger than 2 GiB, and cannot be scored") from None
    digest = hashlib.sha256(content)
    digest.update(f"|1|{data.key}|{metric.name}|{runtime_version()}".encode())
    return digest.hexdigest()
