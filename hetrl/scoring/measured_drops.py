"""What pruning costs a model in accuracy, measured on the user's data.

One half of the data is what a run searches by. The other half is held back until it has its best plans: of these, the
first one that keeps the budget there as well is taken. So its drop there is a little too good only if others were
refused before, which is said.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import onnx
from msgspec import UNSET

from hetrl.accuracy import AccuracyDrops, Floats, MeasuredAccuracy, drop_words
from hetrl.compress.compensate import Moments
from hetrl.compress.planned import compressed_graph, shares_gone
from hetrl.compress.stages import stages
from hetrl.compress.variant import compressed_model, moments_of
from hetrl.compression import NO_COMPRESSION, Compression
from hetrl.graph import OperatorGraph
from hetrl.plan import Evidence, Plan
from hetrl.scoring.accuracy_model import AccuracyModel, Compressed
from hetrl.scoring.data import EvalData
from hetrl.scoring.evaluate import dropped, summarize
from hetrl.scoring.interface import interface
from hetrl.scoring.metrics import Metric, find_metric
from hetrl.scoring.opening import open_data
from hetrl.scoring.pictures import IMAGENET, Normalization
from hetrl.scoring.results import Drop
from hetrl.zoo.source import ModelSource, source_of

FITTED_SAMPLES = 256  # that a pruned model is fitted to
Tell = Callable[[str], None]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What accuracy is measured on; part of a run's configuration.

    :param data: an npz file, or a folder of pictures.
    :param metric: a name as `find_metric` takes it.
    """

    data: str
    metric: str
    normalization: Normalization | None = None


class MeasuredDrops(AccuracyDrops):
    """Measures a compression when it is first asked for; the cache of scores remembers it for later runs.

    Every measured drop refines an `AccuracyModel`, which says what others are expected to cost. Pruned models are
    fitted to pictures of the half that is searched by, without their labels (`compress.compensate`).

    :param source: the model's weights.
    :param limit_pct: the budget; what takes at least as much of every stage as something that is surely over it is not
        measured, as pruning more costs more.
    :param seed: of the division of the data.
    """

    def __init__(
        self,
        source: ModelSource,
        graph: OperatorGraph,
        data: EvalData,
        metric: Metric,
        *,
        limit_pct: float,
        seed: int = 0,
        tell: Tell = lambda sentence: None,
    ) -> None:
        self._source = source
        self._graph = graph
        self._metric = metric
        self._limit_pct = limit_pct
        self._tell = tell
        self._tuning, self._held_back = data.halves(seed)
        # Both halves at once: what is wrong with the data is said before anything is searched.
        original = compressed_model(source, graph, NO_COMPRESSION)
        self._original = {half.key: summarize(original, half, metric) for half in (self._tuning, self._held_back)}
        self._drops: dict[Compression, Drop] = {}
        self._last: dict[Compression, Drop] = {}
        for half in (self._tuning, self._held_back):
            dropped(self._original[half.key], self._original[half.key], half, metric)
        self._expected = AccuracyModel(max(1, len(stages(graph))))

    @property
    def key(self) -> str:
        text = json.dumps([self._tuning.key, self._held_back.key, self._metric.name, self._source.key])
        return hashlib.sha256(text.encode()).hexdigest()

    def model(self, compression: Compression) -> onnx.ModelProto:
        """The compressed model, as it is scored."""
        return compressed_model(self._source, self._graph, compression.shapes, self._moments)

    @cached_property
    def _moments(self) -> Moments:
        """Of evenly spread samples that are searched by; a run takes as many as the model does."""
        rows = self._tuning.rows
        some = EvalData(self._tuning.samples, rows[np.linspace(0, len(rows) - 1, FITTED_SAMPLES).astype(int)])
        if len(rows) <= FITTED_SAMPLES:
            some = self._tuning
        size = self._graph.tensor_by_name[self._graph.inputs[0]].shape[0]
        whole = (feeds for place, feeds in some.batches(size) if place.stop - place.start == size)
        return moments_of(self._source, self._graph, list(whole))

    def compressed_pct(self, compression: Compression) -> float:
        if not compression.changes:
            return 0.0
        compression = compression.shapes
        if compression not in self._drops:
            if any(_less(other, compression) and self._surely_over(drop) for other, drop in self._drops.items()):
                return math.inf
            drop = self._drop(compression, self._tuning)
            self._drops[compression] = drop
            self._expected = self._expected.refined(self._settings(compression), drop)
            self._tell(f"{compression}: {words(drop)} on the tuning half")
        return self._drops[compression].points

    def expected_pct(self, ratios: Floats, channel_multiple: int) -> Floats:
        gone = np.empty_like(ratios)
        for stage, column in enumerate(ratios.T):  # each stage's channels depend on its own ratio alone
            for ratio in np.unique(column).tolist():
                alone = [ratio if other == stage else 0.0 for other in range(ratios.shape[1])]
                share = shares_gone(self._graph, Compression.of(alone, channel_multiple))[stage]
                gone[column == ratio, stage] = share
        return self._expected.pruning_points(gone)

    def evidence(self, compression: Compression) -> Evidence:
        return Evidence.MEASURED

    def held_back(self, compression: Compression) -> MeasuredAccuracy:
        drop = self._at_last(compression.shapes)
        return MeasuredAccuracy(
            metric=drop.metric, drop_pct=drop.points, interval_pct=drop.interval, samples=drop.count
        )

    def refuses(self, plan: Plan) -> bool:
        compression = plan.compression.shapes
        if not compression.changes:
            return False
        known = compression in self._last
        drop = self._at_last(compression)
        over = drop.points + self.beside_pruning_pct(plan) > self._limit_pct
        if over and not known:
            self._tell(f"{compression}: {words(drop)} on the half that was held back, so it is not taken")
        return over

    def _settings(self, compression: Compression) -> Compressed:
        """As far as accuracy depends on them."""
        graph = self._graph
        factored = compressed_graph(graph, compression).parameters
        alone = compressed_graph(graph, msgspec.structs.replace(compression, low_rank=UNSET)).parameters
        return Compressed(shares_gone(graph, compression) or (0.0,), factored / alone)

    def _at_last(self, compression: Compression) -> Drop:
        """The drop on the half that nothing was chosen by."""
        if compression not in self._last:
            self._last[compression] = self._drop(compression, self._held_back)
        return self._last[compression]

    def _surely_over(self, drop: Drop) -> bool:
        low = drop.points if drop.interval is None else drop.interval[0]
        return low > self._limit_pct

    def _drop(self, compression: Compression, data: EvalData) -> Drop:
        before = self._original[data.key]
        if not compression.changes:
            return dropped(before, before, data, self._metric)
        return dropped(before, summarize(self.model(compression), data, self._metric), data, self._metric)


def _less(one: Compression, other: Compression) -> bool:
    """Whether it takes no more of any stage."""
    if one.multiple != other.multiple or (one.low_rank or 1.0) < (other.low_rank or 1.0):
        return False
    size = max(len(one.ratios), len(other.ratios))
    return bool(np.all(np.broadcast_to(one.ratios, size) <= np.broadcast_to(other.ratios, size)))


def evaluation_of(data: str | Path | None, metric: str, normalization: Normalization | None) -> Evaluation | None:
    """What was asked for; None without data."""
    return None if data is None else Evaluation(data=str(data), metric=metric, normalization=normalization)


def measured_drops(graph: OperatorGraph, asked: Evaluation, limit_pct: float, tell: Tell) -> MeasuredDrops:
    """The drops of the model that a graph was read from.

    :raises UsageError: data or metric do not fit the model, or it was made in memory.
    :raises ModelError: its weights are missing.
    :raises MissingExtra: ONNX Runtime is not installed.
    """
    source = source_of(graph)
    shapes = {name: graph.tensor_by_name[name].shape for name in graph.inputs}
    data = open_data(asked.data, interface(source.model, shapes), asked.normalization or IMAGENET)
    return MeasuredDrops(source, graph, data, find_metric(asked.metric), limit_pct=limit_pct, tell=tell)


def words(drop: Drop) -> str:
    """A drop in words."""
    return f"{drop_words(drop.metric, drop.points, drop.interval)} on {drop.count} samples"
