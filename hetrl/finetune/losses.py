"""What training minimises: labels, and the original network's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hetrl.errors import UsageError
from hetrl.finetune.settings import Loss

_SMALLEST = 1e-30  # of probabilities, before their logarithm
Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Criterion:
    """The loss of a batch.

    The first output belongs to the labels; with a teacher, all of them are held against its outputs: class scores by
    their probabilities at a temperature T, times T² (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural
    Network", 2015), everything else by its mean squared error.

    :param probabilities: whether the first output has been through Softmax.
    :param distillation: the teacher's share, 0 to 1.
    :param scales: mean squares of the targets and of each of the teacher's outputs, which make errors relative.
    """

    loss: Loss
    probabilities: bool
    distillation: float
    temperature: float
    target_scale: float = 1.0
    teacher_scales: tuple[float, ...] = ()

    def __call__(self, outputs: Outputs, labels: Tensor | None, teacher: Outputs | None) -> Tensor:
        total = outputs[0].new_zeros(())
        if labels is not None and self.distillation < 1:
            total = total + (1 - self.distillation) * self._task(outputs[0], labels)
        if teacher is not None and self.distillation > 0:
            total = total + self.distillation * self._imitation(outputs, teacher)
        return total

    def right(self, outputs: Outputs, labels: Tensor) -> int:
        """How many labels have the largest score."""
        return int((_classes_last(outputs[0], labels).argmax(-1) == _flat(labels)).sum())

    def _task(self, output: Tensor, labels: Tensor) -> Tensor:
        if self.loss is Loss.CROSS_ENTROPY:
            return F.cross_entropy(self._logits(_classes_last(output, labels)), _flat(labels))
        return F.mse_loss(output, labels.reshape(output.shape)) / self.target_scale

    def _imitation(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        total = outputs[0].new_zeros(())
        pairs = zip(outputs, teacher, self.teacher_scales, strict=True)
        for position, (ours, theirs, scale) in enumerate(pairs):
            if position == 0 and self.loss is Loss.CROSS_ENTROPY:
                mine, wanted = (F.log_softmax(self._logits(t) / self.temperature, 1) for t in (ours, theirs))
                divergence = F.kl_div(mine, wanted, reduction="none", log_target=True).sum(1).mean()
                total = total + self.temperature**2 * divergence
            elif ours.is_floating_point():
                total = total + F.mse_loss(ours, theirs) / scale
        return total

    def _logits(self, output: Tensor) -> Tensor:
        return output.clamp_min(_SMALLEST).log() if self.probabilities else output


def require_fit(output: Tensor, labels: Tensor, loss: Loss, everything: Tensor) -> None:
    """:param output: of as many samples as `labels` has; `everything` are all labels.

    :raises UsageError: the labels are of another shape, or name classes that the output does not have.
    """
    count = len(labels)
    if loss is Loss.MSE:
        if output.numel() != labels.numel() or len(output) != count:
            raise UsageError(f"targets of the shape {_shape(labels)} do not fit the output", f"it is {_shape(output)}")
        return
    classes = output.shape[1] if output.ndim > 1 else 1
    pixels = output.numel() // max(1, count * classes)
    if len(output) != count or classes < 2 or labels.numel() != count * pixels:
        raise UsageError(f"classes of the shape {_shape(labels)} do not fit the output", f"it is {_shape(output)}")
    low, high = int(everything.min()), int(everything.max())
    if low < 0 or high >= classes:
        bad = low if low < 0 else high
        raise UsageError(f"the label {bad} is none of the model's {classes} classes", f"labels are 0 to {classes - 1}")


def _classes_last(output: Tensor, labels: Tensor) -> Tensor:
    """Scores as (labels, classes)."""
    return output.movedim(1, -1).reshape(labels.numel(), -1)


def _flat(labels: Tensor) -> Tensor:
    return labels.reshape(-1)


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape))


def mean_square(x: Tensor) -> float:
    return max(float(x.float().square().mean()), torch.finfo(torch.float32).tiny)
