"""What fine-tuning tells of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import onnx


class Validation(msgspec.Struct, frozen=True):
    """The network on the part of the data that no step sees, in evaluation mode.

    :param loss: the loss that is trained, the share of the teacher included.
    :param accuracy: share (0 to 1) of right classes, None where there are none.
    """

    loss: float
    accuracy: float | None

    @property
    def key(self) -> tuple[float, float]:
        """Larger is better: accuracy first, where there is one."""
        return (self.accuracy or 0.0, -self.loss)


class Epoch(msgspec.Struct, frozen=True):
    """One pass over the data.

    :param number: from 1; 0 is the network as it came.
    :param loss: mean over the steps; NaN before the first, and where the loss was not finite.
    :param best: whether it is the best so far.
    """

    number: int
    of: int
    loss: float
    validation: Validation
    learning_rate: float
    best: bool

    def __str__(self) -> str:
        right = self.validation.accuracy
        told = "" if right is None else f", {100 * right:.1f} % right"
        mark = ", best so far" if self.best else ""
        if self.number == 0:
            return f"before training: validation {self.validation.loss:.4g}{told}"
        return f"epoch {self.number}/{self.of}: loss {self.loss:.4g}, validation {self.validation.loss:.4g}{told}{mark}"


OnEpoch = Callable[[Epoch], Any]


class FinetuneReport(msgspec.Struct, frozen=True):
    """What happened.

    :param epochs: all that were finished, the state before training first.
    :param best: number of the epoch whose numbers the model has; 0 if training made nothing better.
    :param parameters: how many numbers were trained.
    :param samples: how many of them trained, and how many validated.
    :param batched: False where the graph takes no batch but the one it was exported for: gradients of single samples
        were then added up, and running statistics left as they were.
    :param interrupted: whether Ctrl-C ended it.
    :param notes: what a user should know, one sentence each.
    """

    epochs: tuple[Epoch, ...]
    best: int
    parameters: int
    samples: tuple[int, int]
    batched: bool
    interrupted: bool
    notes: tuple[str, ...]

    @property
    def before(self) -> Validation:
        return self.epochs[0].validation

    @property
    def after(self) -> Validation:
        return self.epochs[self.best].validation


@dataclass(frozen=True)
class Finetuned:
    """:param model: the given model with trained numbers; its operators and their names are the same."""

    model: onnx.ModelProto
    report: FinetuneReport
