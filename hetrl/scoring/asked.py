"""All that can be asked of scoring at once, from names and paths to the answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from msgspec.structs import replace

from hetrl.compress.weights import complete_model
from hetrl.errors import UnknownName, UsageError
from hetrl.scoring.data import EvalData
from hetrl.scoring.evaluate import compare, require_same_inputs, score
from hetrl.scoring.fidelity import fidelity
from hetrl.scoring.interface import interface
from hetrl.scoring.metrics import find_metric
from hetrl.scoring.opening import open_data
from hetrl.scoring.pictures import IMAGENET, Normalization
from hetrl.scoring.prediction import predicted_drop
from hetrl.scoring.results import Part, Scores
from hetrl.scoring.running import Watch, require_runtime
from hetrl.zoo import names
from hetrl.zoo.resolve import is_model_path
from hetrl.zoo.source import FileSource, ModelSource, open_source


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments of `hetrl.score`."""

    model: str | Path
    eval_data: Path | None
    metric: str
    against: str | Path | None
    part: str
    normalization: Normalization | None
    seed: int
    input_shapes: dict[str, tuple[int, ...]]
    seeded_weights: int | None
    threads: int | None

    def __post_init__(self) -> None:
        if self.eval_data is None and self.against is None:
            raise UsageError("there is nothing to score the model on", "give --eval-data FILE or --against ORIGINAL")
        if self.part not in list(Part):
            raise UnknownName("part of the data", self.part, list(Part), "hetrl score --help")
        if self.part != Part.ALL and self.eval_data is None:
            raise UsageError(f"--part {self.part} is of data", "give --eval-data FILE")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"{self.threads} threads do nothing", "give --threads 1 or more")


def scores(asked: Asked, watch: Watch | None = None) -> Scores:
    """What `hetrl.score` returns.

    :raises HetrlError: see there.
    """
    require_runtime()
    model = load(asked.model, asked.seeded_weights)
    original = None if asked.against is None else load(asked.against, asked.seeded_weights)
    if original is not None:
        require_same_inputs(model, original)
    if asked.eval_data is not None:
        return _on_data(asked, asked.eval_data, model, original, watch)
    if original is None:
        raise UsageError("there is nothing to compare the model with", "give --against ORIGINAL")
    close = fidelity(
        model, original, seed=asked.seed, input_shapes=asked.input_shapes, threads=asked.threads, watch=watch
    )
    predicted = predicted_drop(model, original) if asked.against in names() else None
    return Scores(model=str(asked.model), against=str(asked.against), fidelity=close, predicted=predicted)


def load(model: str | Path, seeded_weights: int | None = None) -> onnx.ModelProto:
    """A built-in network or an ONNX file with its weights.

    :raises ModelError: weights are missing or not finite, or the file is no model.
    :raises UnknownName: neither a built-in network nor a file.
    """
    return complete_model(_source(model, seeded_weights))


def _source(model: str | Path, seeded_weights: int | None) -> ModelSource:
    if isinstance(model, str) and (model in names() or not is_model_path(model)):
        return open_source(model, seeded_weights)[0]
    return FileSource(Path(model), seeded_weights)


def _on_data(
    asked: Asked, path: Path, model: onnx.ModelProto, original: onnx.ModelProto | None, watch: Watch | None
) -> Scores:
    metric = find_metric(asked.metric)
    wanted = interface(model, asked.input_shapes)
    data = _part(open_data(path, wanted, asked.normalization or IMAGENET), Part(asked.part), asked.seed)
    about = Scores(model=str(asked.model), against=None, part=Part(asked.part))
    if original is None:
        return replace(about, score=score(model, data, metric, threads=asked.threads, watch=watch))
    after, before, drop = compare(model, original, data, metric, threads=asked.threads, watch=watch)
    return replace(about, against=str(asked.against), score=after, original=before, drop=drop)


def _part(data: EvalData, part: Part, seed: int) -> EvalData:
    if part is Part.ALL:
        return data
    tuning, held_back = data.halves(seed)
    return tuning if part is Part.TUNING else held_back
