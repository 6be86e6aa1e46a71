"""What pruning costs a model in accuracy, measured on the user's data.

One half of the data is what a run decides by. The other half is held back until the run has a best plan: nothing was
chosen by it, so that what it says of that plan is not too good.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx

from hetrl.accuracy import AccuracyDrops, MeasuredAccuracy
from hetrl.compress.variant import compressed_model
from hetrl.errors import UsageError
from hetrl.graph import OperatorGraph
from hetrl.plan import Compression, Evidence
from hetrl.scoring.data import EvalData
from hetrl.scoring.evaluate import dropped, summarize
from hetrl.scoring.interface import interface
from hetrl.scoring.metrics import Metric, find_metric
from hetrl.scoring.opening import open_data
from hetrl.scoring.pictures import IMAGENET, Normalization
from hetrl.scoring.results import Drop
from hetrl.zoo.source import ModelSource, open_source

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
        self._drops: dict[float, Drop] = {}
        self._last: dict[float, Drop] = {}

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

    def refuses(self, prune_ratio: float) -> bool:
        known = prune_ratio in self._last
        drop = self._at_last(prune_ratio)
        over = drop.points > self._limit_pct
        if over and not known:
            self._tell(f"pruned by {prune_ratio:g}: {words(drop)} on the half that was held back, so it is not taken")
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
        before, after = (summarize(self._model(ratio), data, self._metric) for ratio in (0.0, prune_ratio))
        return dropped(before, after, data, self._metric)

    def _model(self, prune_ratio: float) -> onnx.ModelProto:
        return compressed_model(self._source, self._graph, Compression(prune_ratio))


def measured_drops(graph: OperatorGraph, asked: Evaluation, limit_pct: float, tell: Tell) -> MeasuredDrops:
    """The drops of the model that a graph was read from.

    :raises UsageError: data or metric do not fit the model, or it was made in memory.
    :raises ModelError: its weights are missing.
    :raises MissingExtra: ONNX Runtime is not installed.
    """
    origin = graph.origin
    if origin is None:
        raise UsageError(f"{graph.name!r} was made in memory, so its weights are not known", "give an ONNX file")
    shapes = {name: graph.tensor_by_name[name].shape for name in graph.inputs}
    source, _ = open_source(origin.model if origin.builtin else Path(origin.model), origin.seeded_weights, shapes)
    data = open_data(asked.data, interface(source.model), asked.normalization or IMAGENET)
    return MeasuredDrops(source, graph, data, find_metric(asked.metric), limit_pct=limit_pct, tell=tell)


def words(drop: Drop) -> str:
    """A drop in words."""
    interval = "" if drop.interval is None else f" ({drop.interval[0]:.2f} to {drop.interval[1]:.2f})"
    return f"{drop.metric} drops by {drop.points:.2f}{interval} points on {drop.count} samples"
