"""The steps of training: batches in a seeded order, a cosine of learning rates, gradients of limited length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hetrl.finetune.predictor import Predictor
from hetrl.finetune.settings import FinetuneSettings

LossOf = Callable[[Sequence[Tensor], Tensor], Tensor]


class NotFinite(Exception):
    """The loss or its gradients are NaN or infinite."""


class Steps:
    """Epoch after epoch of one optimizer.

    :param inputs: all samples, by input.
    :param training: indices of those that train.
    :param loss: of outputs and the indices of their samples.
    :param done: epochs that are over already: the cosine goes on where they ended.
    """

    def __init__(
        self,
        predictor: Predictor,
        optimizer: torch.optim.Optimizer,
        settings: FinetuneSettings,
        inputs: Sequence[Tensor],
        training: Tensor,
        loss: LossOf,
        done: int,
    ) -> None:
        self._predictor = predictor
        self._module = predictor.module
        self._optimizer = optimizer
        self._limit = settings.gradient_norm
        self._inputs = inputs
        self._training = training
        self._loss = loss
        self._batch = predictor.batch if predictor.exact else settings.batch
        per_epoch = len(self._batches(torch.arange(len(training))))
        self._step, self._total = done * per_epoch, settings.epochs * per_epoch
        self._first_rate = float(optimizer.param_groups[0]["lr"])

    @property
    def learning_rate(self) -> float:
        return self._first_rate * (1 + math.cos(math.pi * self._step / self._total)) / 2

    def epoch(self) -> float:
        """Mean loss over the samples.

        :raises NotFinite: at the first step whose loss or gradient is not finite.
        """
        self._module.train()
        self._module.batch_statistics = self._predictor.batched
        total, count = 0.0, 0
        for chosen in self._batches(torch.randperm(len(self._training))):
            total += len(chosen) * self._one(self._training[chosen])
            count += len(chosen)
        return total / count

    def _one(self, chosen: Tensor) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        self._optimizer.zero_grad()
        loss = 0.0
        for part in chosen.split(len(chosen) if self._predictor.batched else 1):
            outputs = self._module(*(tensor[part] for tensor in self._inputs))
            value = self._loss(outputs, part) * (len(part) / len(chosen))
            if not math.isfinite(value.item()):
                raise NotFinite
            value.backward()
            loss += value.item()
        norm = torch.nn.utils.clip_grad_norm_(self._module.parameters(), self._limit)
        if not math.isfinite(norm.item()):
            raise NotFinite
        self._optimizer.step()
        self._step += 1
        return loss

    def _batches(self, order: Tensor) -> list[Tensor]:
        """A remainder is left out where the graph cannot take it, or it is a single sample without statistics."""
        batches = list(order.split(self._batch))
        short = len(batches[-1]) < self._batch if self._predictor.exact else len(batches[-1]) == 1
        return batches[:-1] if short and len(batches) > 1 and self._predictor.batched else batches
