"""Fine-tuning as a step of compression: from a file of training data to a trained model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import onnx

from hetrl.errors import UsageError
from hetrl.finetune.settings import FinetuneSettings
from hetrl.scoring.interface import interface
from hetrl.scoring.opening import open_data
from hetrl.scoring.pictures import IMAGENET, Normalization


class Finetuning(msgspec.Struct, frozen=True, kw_only=True):
    """What a compressed model is trained on.

    :param data: an npz file of inputs and labels, or a folder of pictures; not what it will be scored on.
    """

    data: str
    settings: FinetuneSettings
    normalization: Normalization | None = None


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """How fine-tuning went, on the part of the training data that no step saw.

    :param best: number of the epoch that was taken; 0 if training made nothing better.
    :param loss_before, loss_after: validation loss.
    :param right_before, right_after: share (0 to 1) of right classes, None where labels are no classes.
    """

    epochs: int
    best: int
    loss_before: float
    loss_after: float
    right_before: float | None
    right_after: float | None
    notes: tuple[str, ...] = ()


@dataclass
class Trainer:
    """Trains when it is called; `report` says how it went.

    :param original: the model before it was compressed, whose outputs are learnt as well.
    """

    asked: Finetuning
    original: onnx.ModelProto
    input_shapes: dict[str, tuple[int, ...]]
    tell: Callable[[str], None]
    report: Tuned | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        normalization = self.asked.normalization or IMAGENET
        self._data = open_data(
            self.asked.data, interface(self.original, self.input_shapes), normalization
        )  # says at once what is wrong

    def __call__(self, model: onnx.ModelProto) -> onnx.ModelProto:
        from hetrl.finetune.training import finetune

        parts = [batch for _, batch in self._data.batches(256)]
        inputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        done = finetune(
            model, inputs, self._data.labels, self.asked.settings, teacher=self.original,
            on_epoch=lambda epoch: self.tell(str(epoch)),
        )  # fmt: skip
        if done.report.interrupted:
            self.tell("interrupted: the best epoch so far is taken")
        before, after = done.report.before, done.report.after
        self.report = Tuned(
            epochs=len(done.report.epochs) - 1,
            best=done.report.best,
            loss_before=before.loss,
            loss_after=after.loss,
            right_before=before.accuracy,
            right_after=after.accuracy,
            notes=done.report.notes,
        )
        return done.model


def finetuning_of(epochs: int, data: str | Path | None, seed: int, normalization: Normalization | None) -> Finetuning:
    """
    :raises UsageError: no data, or epochs out of range.
    """
    if data is None:
        raise UsageError("fine-tuning needs data to train on", "add --train-data FILE")
    return Finetuning(data=str(data), settings=FinetuneSettings(epochs=epochs, seed=seed), normalization=normalization)
