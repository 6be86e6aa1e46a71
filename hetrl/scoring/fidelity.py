"""Without data: how close a model's outputs are to the original's on random inputs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import onnx

from hetrl.errors import UsageError
from hetrl.scoring.data import EvalData, Rows, whole
from hetrl.scoring.hits import class_scores
from hetrl.scoring.interface import Array, InputSpec, Interface, interface
from hetrl.scoring.results import Fidelity
from hetrl.scoring.running import Watch, outputs
from hetrl.scoring.sample_means import cosines

COUNT = 16


@dataclass(frozen=True)
class SeededSamples:
    """Standard normal floats, integers of 0 and 1: each sample from its own seed, so that batches do not matter."""

    inputs: tuple[InputSpec, ...]
    count: int
    seed: int
    classes: int | None = None

    @property
    def labels(self) -> Array:
        return np.zeros((self.count, 0))

    @property
    def key(self) -> str:
        return hashlib.sha256(repr((self.inputs, self.count, self.seed)).encode()).hexdigest()

    def batch(self, rows: Rows) -> dict[str, Array]:
        return {
            spec.name: np.stack([self._draw(spec, index, int(row)) for row in rows])
            for index, spec in enumerate(self.inputs)
        }

    def _draw(self, spec: InputSpec, index: int, row: int) -> Array:
        draw = np.random.default_rng([self.seed, row, index])
        shape = [size or 1 for size in spec.shape[1:]]
        if spec.dtype.kind in "iub":
            return draw.integers(0, 2, shape).astype(spec.dtype)
        return draw.standard_normal(shape, dtype=np.float32).astype(spec.dtype)


def seeded_data(wanted: Interface, count: int = COUNT, seed: int = 0) -> EvalData:
    """Random inputs for a model, without labels.

    :raises UsageError: an input's shape is not known.
    """
    for spec in wanted.inputs:
        if None in spec.shape[1:]:
            raise UsageError(
                f"the model's input {spec.name!r} takes {spec.words}", f"say which: --input-shape {spec.name}:1x..."
            )
    return whole(SeededSamples(wanted.inputs, count, seed))


def fidelity(
    model: onnx.ModelProto,
    original: onnx.ModelProto,
    *,
    count: int = COUNT,
    seed: int = 0,
    input_shapes: dict[str, tuple[int, ...]] | None = None,
    threads: int | None = None,
    watch: Watch | None = None,
) -> Fidelity:
    """Compare two versions of one model on `count` random inputs.

    :raises UsageError: their outputs have other shapes.
    :raises ModelError: one of them does not run, or gives no numbers.
    """
    wanted = [interface(one, input_shapes) for one in (original, model)]
    data = seeded_data(min(wanted, key=_open_sizes), count, seed)
    exact, found = (
        np.concatenate([part for _, part in outputs(one, data, threads=threads, watch=watch)])
        for one in (original, model)
    )
    if exact.shape != found.shape:
        shapes = " and ".join("x".join(["N", *map(str, side.shape[1:])]) for side in (found, exact))
        raise UsageError(f"the models' outputs differ in shape: {shapes}", "--against takes the original model")
    scores = class_scores(found), class_scores(exact)
    agree = None
    if scores[0] is not None and scores[1] is not None:
        agree = 100 * float((scores[0].argmax(1) == scores[1].argmax(1)).mean())
    one, other = (np.asarray(side, np.float64).reshape(count, -1) for side in (found, exact))
    largest, scale = np.abs(one - other).max(initial=0), np.abs(other).max(initial=0)
    return Fidelity(
        cosine=float(cosines(one, other).mean()),
        relative_error=float(largest / scale if scale > 0 else largest),
        top1_agreement_pct=agree,
        count=count,
        seed=seed,
    )


def _open_sizes(wanted: Interface) -> int:
    return sum(spec.shape[1:].count(None) for spec in wanted.inputs)
