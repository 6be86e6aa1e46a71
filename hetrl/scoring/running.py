"""A model's first output for all samples of data, in ONNX Runtime on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx

from hetrl.compress.weights import LARGEST_INLINE_BYTES, save_model
from hetrl.errors import MissingExtra, ModelError
from hetrl.scoring.batching import with_free_batch
from hetrl.scoring.data import EvalData, Feeds
from hetrl.scoring.interface import Array, Interface, interface

BATCH_NUMBERS = 2_000_000  # of the inputs in one run, so that what is in between fits into memory
LARGEST_BATCH = 256
CLOSE = 1e-3  # largest difference over largest value: another batch takes other kernels

Watch = Callable[[int, int], None]  # samples done, samples in all


def require_runtime() -> None:
    """Whether ONNX Runtime is installed; it is not imported.

    :raises MissingExtra: it is not.
    """
    if find_spec("onnxruntime") is None:
        raise MissingExtra("scoring a model", "host")


def runtime_version() -> str:
    """Such as `onnxruntime 1.22.0`: what a score is of, besides model and data."""
    require_runtime()
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"onnxruntime {version('onnxruntime')}"
    except PackageNotFoundError:  # a build under another name, such as onnxruntime-gpu
        import onnxruntime as ort

        return f"onnxruntime {ort.__version__}"


def outputs(
    model: onnx.ModelProto, data: EvalData, *, threads: int | None = None, watch: Watch | None = None
) -> Iterator[tuple[slice, Array]]:
    """The first output for `data`, some samples at a time, each part with its place; its first size is samples.

    Many samples run at once where that gives what the model as it is gives, else as many as it takes.

    :param threads: of the runtime; by default it chooses.
    :raises ModelError: the model does not run, or gives no number (NaN).
    """
    wanted = interface(model)
    fixed, size = Runner(model, threads), wanted.batch or 1
    runner = fixed
    if len(data) > size:
        many = _batch_size(data)
        first = next(data.batches(many))[1]
        free = _free_runner(model, wanted, fixed, threads, first)
        if free is not None:
            runner, size = free, many
    for place, feeds in data.batches(size):
        count = place.stop - place.start
        whole = feeds if runner is not fixed or count == size else _filled(feeds, size)
        found = runner(whole)
        if found.shape[:1] != (size if whole is not feeds else count,):
            if count > 1:
                raise ModelError(f"the output {runner.output!r} of {_words(found)} is none per sample")
            found = found[None]  # the only sample, whose axis the model has dropped
        if found.dtype.kind == "f" and np.isnan(found).any():
            raise ModelError(
                f"the model's output {runner.output!r} has NaN for samples {place.start} to {place.stop - 1}"
            )
        yield place, found[:count]
        if watch is not None:
            watch(place.stop, len(data))


class Runner:
    """A model in ONNX Runtime."""

    def __init__(self, model: onnx.ModelProto, threads: int | None) -> None:
        require_runtime()
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4  # its errors are raised as well
        options.intra_op_num_threads = threads or 0
        try:
            if model.ByteSize() <= LARGEST_INLINE_BYTES:
                self._session = ort.InferenceSession(
                    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            else:
                with tempfile.TemporaryDirectory() as folder:
                    save_model(model, Path(folder) / "model.onnx")
                    path = str(Path(folder) / "model.onnx")
                    self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors have no common class
            raise ModelError(f"ONNX Runtime refuses the model: {_line(error)}") from None
        self.output: str = self._session.get_outputs()[0].name

    def __call__(self, feeds: Feeds) -> Array:
        try:
            found: Array = self._session.run([self.output], dict(feeds))[0]
        except Exception as error:
            raise ModelError(f"the model fails in ONNX Runtime: {_line(error)}") from None
        if not isinstance(found, np.ndarray):
            raise ModelError(f"the model's output {self.output!r} is no tensor")
        return found


def _free_runner(
    model: onnx.ModelProto, wanted: Interface, fixed: Runner, threads: int | None, feeds: Feeds
) -> Runner | None:
    """One that takes any number of samples, None where that gives other outputs than the model as it is."""
    size, count = wanted.batch or 1, len(next(iter(feeds.values())))
    try:
        runner = fixed if wanted.batch is None else Runner(with_free_batch(model, wanted), threads)
        together = runner(feeds)
    except ModelError:
        return None
    if together.shape[:1] != (count,):
        return None
    for start in {0, max(0, count - size)}:
        alone = fixed(_filled({name: values[start : start + size] for name, values in feeds.items()}, size))
        same = together[start : start + size]
        if alone[: len(same)].shape != same.shape or not _close(same, alone[: len(same)]):
            return None
    return runner


def _close(one: Array, other: Array) -> bool:
    found, exact = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return bool(np.abs(found - exact).max(initial=0) <= CLOSE * np.abs(exact).max(initial=0))


def _batch_size(data: EvalData) -> int:
    sample = data.samples.batch(data.rows[:1])
    numbers = sum(values.size for values in sample.values())
    return min(LARGEST_BATCH, max(1, BATCH_NUMBERS // max(numbers, 1)))


def _filled(feeds: Feeds, size: int) -> Feeds:
    """As many samples as the model wants: the last one again and again."""
    return {name: values[np.minimum(np.arange(size), len(values) - 1)] for name, values in feeds.items()}


def _words(found: Array) -> str:
    return "x".join(map(str, found.shape)) or "one number"


def _line(error: Exception) -> str:
    """The runtime's last clear words."""
    return " ".join(str(error).split())[-200:] or type(error).__name__
