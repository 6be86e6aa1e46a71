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
from pathlib import Path

import msgspec

from hetrl.accuracy import AccuracyDrops, MeasuredAccuracy, drop_words
from hetrl.compress.variant import compressed_model
from hetrl.graph import OperatorGraph
from hetrl.plan import Compression, Evidence, Plan
from hetrl.scoring.data import EvalData
from hetrl.scoring.evaluate import dropped, summarize
from hetrl.scoring.interface import interface
from hetrl.scoring.metrics import Metric, find_metric
from hetrl.scoring.opening import open_data
from hetrl.scoring.pictures import IMAGENET, Normalization
from hetrl.scoring.results import Drop
from hetrl.zoo.source import ModelSource, source_of

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
    """Measures a pruning ratio when it is first asked for; the cache of scores remembers it for later runs.

    :param source: the model's weights.
    :param limit_pct: the budget; ratios above one that is surely over it are not measured, as pruning more costs more.
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
        original = compressed_model(source, graph, Compression())
        self._original = {half.key: summarize(original, half, metric) for half in (self._tuning, self._held_back)}
        self._drops: dict[float, Drop] = {}
        self._last: dict[float, Drop] = {}
        for half in (self._tuning, self._held_back):
            dropped(self._original[half.key], self._original[half.key], half, metric)

    @property
    def key(self) -> str:
        text = json.dumps([self._tuning.key, self._held_back.key, self._metric.name, self._source.key])
        return hashlib.sha256(text.encode()).hexdigest()

    def pruned_pct(self, prune_ratio: float) -> float:
        if prune_ratio == 0:
            return 0.0
        if prune_ratio not in self._drops:
            if any(ratio < prune_ratio and self._surely_over(drop) for ratio, drop in self._drops.items()):
                return math.inf
            self._drops[prune_ratio] = self._drop(prune_ratio, self._tuning)
            self._tell(f"pruned by {prune_ratio:g}: {words(self._drops[prune_ratio])} on the tuning half")
        return self._drops[prune_ratio].points

    def evidence(self, prune_ratio: float) -> Evidence:
        return Evidence.MEASURED

    def held_back(self, prune_ratio: float) -> MeasuredAccuracy:
        drop = self._at_last(prune_ratio)
        return MeasuredAccuracy(
            metric=drop.metric, drop_pct=drop.points, interval_pct=drop.interval, samples=drop.count
        )

    def refuses(self, plan: Plan) -> bool:
        ratio = plan.compression.prune_ratio
        if ratio == 0:
            return False
        known = ratio in self._last
        drop = self._at_last(ratio)
        over = drop.points + self.beside_pruning_pct(plan) > self._limit_pct
        if over and not known:
            self._tell(f"pruned by {ratio:g}: {words(drop)} on the half that was held back, so it is not taken")
        return over

    def _at_last(self, prune_ratio: float) -> Drop:
        """The drop on the half that nothing was chosen by."""
        if prune_ratio not in self._last:
            self._last[prune_ratio] = self._drop(prune_ratio, self._held_back)
        return self._last[prune_ratio]

    def _surely_over(self, drop: Drop) -> bool:
        low = drop.points if drop.interval is None else drop.interval[0]
        return low > self._limit_pct

    def _drop(self, prune_ratio: float, data: EvalData) -> Drop:
        before = self._original[data.key]
        if prune_ratio == 0:
            return dropped(before, before, data, self._metric)
        model = compressed_model(self._source, self._graph, Compression(prune_ratio))
        return dropped(before, summarize(model, data, self._metric), data, self._metric)


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
