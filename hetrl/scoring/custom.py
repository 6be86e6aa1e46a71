"""`--metric module:function`: a metric of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

import numpy as np

from hetrl.errors import UsageError
from hetrl.scoring.data import EvalData
from hetrl.scoring.interface import Array
from hetrl.scoring.metrics import Metric, Parts, Summary
from hetrl.scoring.statistics import Interval, jackknife

FOLDS = 20
FEWEST_FOLDS = 3
HOW = "it is called as function(outputs, labels) and returns a number"


class Custom(Metric):
    """A function of all outputs and all labels; larger is better unless its `larger_is_better` is False.

    Its interval comes from calling it again with each twentieth of the samples left out. Scores are not kept for later:
    what the function does may have changed by then.
    """

    cacheable = False

    def __init__(self, name: str, function: Callable[[Array, Array], object]) -> None:
        self.name = name
        self.larger_is_better = bool(getattr(function, "larger_is_better", True))
        self._function = function

    def check(self, data: EvalData, output: str, found: Array) -> None:
        """Anything goes that the function takes."""

    def summary(self, parts: Parts, data: EvalData) -> Summary:
        outputs, labels = np.concatenate([found for _, found in parts]), data.labels
        folds = min(FOLDS, len(labels))
        fold = np.arange(len(labels)) % folds
        kept = [fold != index for index in range(folds)] if folds >= FEWEST_FOLDS else []
        value = self._called(outputs.copy(), labels.copy())
        return Summary(value, tuple(self._called(outputs[rows], labels[rows]) for rows in kept))

    def interval(self, summary: Summary) -> Interval | None:
        return jackknife(summary.value, np.array(summary.parts)) if summary.parts else None

    def drop(self, original: Summary, other: Summary) -> tuple[float, Interval | None]:
        points = self.relative_drop(original.value, other.value)
        if not original.parts or 0 in original.parts:
            return points, None
        return points, jackknife(points, self.relative(np.array(original.parts), np.array(other.parts)))

    def _called(self, outputs: Array, labels: Array) -> float:
        try:
            with current_folder_first():
                result = self._function(outputs, labels)
                value = float(result)  # type: ignore[arg-type]
        except (Exception, SystemExit) as error:
            raise UsageError(f"the metric {self.name} raised {_named(error)}", HOW) from None
        if not np.isfinite(value):
            raise UsageError(f"the metric {self.name} returned {value}, no finite number", HOW)
        return value


def load_metric(name: str) -> Custom:
    """Import `module:function`, also from the current folder.

    :raises UsageError: there is no such function, or the module cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        with current_folder_first():
            found = import_module(module) if module else None
    except (Exception, SystemExit) as error:
        raise UsageError(f"the metric's module {module!r} raised {_named(error)}", "--metric module:function") from None
    function = getattr(found, attribute, None)
    if not callable(function):
        raise UsageError(f"{module or 'no module'!r} has no function {attribute!r}", "--metric module:function")
    return Custom(name, function)


@contextmanager
def current_folder_first() -> Iterator[None]:
    """Modules of the current folder can be imported, as `python` itself does it."""
    before = list(sys.path)
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path[:] = before


def _named(error: BaseException) -> str:
    words = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
