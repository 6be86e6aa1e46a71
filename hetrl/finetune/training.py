"""Fine-tuning: the weights of a compressed model, moved by gradients until its outputs are right again."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import onnx
import torch
from torch import Tensor

from hetrl.errors import ModelError, UsageError
from hetrl.finetune.losses import Criterion, mean_square, require_fit
from hetrl.finetune.network import Network, read_network
from hetrl.finetune.predictor import Predictor, predictor
from hetrl.finetune.results import Epoch, Finetuned, FinetuneReport, OnEpoch, Validation
from hetrl.finetune.samples import Array, Samples, read_samples
from hetrl.finetune.settings import FinetuneSettings, Loss, Optimizer
from hetrl.finetune.steps import NotFinite, Steps
from hetrl.finetune.teacher import Teacher
from hetrl.finetune.trainable import ends_in_softmax, has_norms

MOST_HALVINGS = 8
_TRIED = 2  # samples that show whether labels fit outputs


def finetune(
    model: onnx.ModelProto,
    inputs: Array | Mapping[str, Array],
    labels: Array | None,
    settings: FinetuneSettings,
    *,
    teacher: onnx.ModelProto | None = None,
    loss: Loss | None = None,
    on_epoch: OnEpoch | None = None,
) -> Finetuned:
    """Train a complete model (functions inlined, weights inside) further; the given one is not changed.

    The epoch that does best on a held-back part of the data wins, the state before training included. Ctrl-C ends
    training with the best epoch so far.

    :param inputs: samples along the first axis, float32 as the model takes them; an array for the model's one input,
        or one by name for each.
    :param labels: classes (integers) or targets of the first output; None where only the teacher says what is right.
    :param teacher: the model before it was compressed; with it, its outputs are learnt as well.
    :param loss: None takes cross-entropy for integer labels, the mean squared error for others.
    :param on_epoch: called after every epoch, and once before the first.
    :raises UsageError: data that do not fit the model, or nothing to learn from.
    :raises ModelError: operators that cannot be trained through; outputs that are not finite.
    """
    samples = read_samples(model, inputs, labels, loss)
    if samples.labels is None and teacher is None:
        raise UsageError("fine-tuning without labels needs the original model to learn from")
    with _reproducible(settings):
        network = read_network(model)
        return _Training(network, samples, settings, teacher).run(on_epoch)


class _Training:
    """One call of `finetune`."""

    def __init__(
        self, network: Network, samples: Samples, settings: FinetuneSettings, teacher: onnx.ModelProto | None
    ) -> None:
        self._network = network
        self._settings = settings
        self._inputs = tuple(torch.from_numpy(array) for array in samples.inputs)
        self._labels = None if samples.labels is None else torch.from_numpy(samples.labels)
        self._predict: Predictor = predictor(network.model, network.module, self._inputs, settings.batch)
        self._teacher = None if teacher is None else Teacher(teacher, self._inputs, settings.batch)
        self._criterion = self._checked_criterion(samples.loss)
        training, validation = samples.parts(settings.validation_share, settings.seed)
        self._training, self._validation = torch.from_numpy(training), torch.from_numpy(validation)
        if self._predict.exact and len(training) < self._predict.batch:
            raise UsageError(
                f"{samples.count} samples are too few for a model that takes {self._predict.batch} at once"
            )
        self._first_rate = settings.first_rate(norms=has_norms(network.model))
        self._best: Epoch
        self._best_state: dict[str, Tensor]
        self._epochs: list[Epoch] = []
        self._notes: list[str] = []
        if not self._predict.batched and settings.batch > 1:
            self._notes.append(
                "the graph takes one sample at a time: gradients are added up, BatchNormalization keeps its statistics"
            )

    def run(self, on_epoch: OnEpoch | None) -> Finetuned:
        interrupted, first = False, self._before()
        self._best, self._best_state = first, _state(self._network.module)
        try:
            self._tell(first, on_epoch)
            self._train(on_epoch)
        except KeyboardInterrupt:
            interrupted = True
        module = self._network.module
        _restore(module, self._best_state)
        report = FinetuneReport(
            epochs=tuple(self._epochs),
            best=self._best.number,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            samples=(len(self._training), len(self._validation)),
            batched=self._predict.batched,
            interrupted=interrupted,
            notes=tuple(self._notes),
        )
        return Finetuned(self._network.trained(), report)

    def _before(self) -> Epoch:
        start = self._validate()
        if not math.isfinite(start.loss):
            raise ModelError("the model's outputs are not finite on the given samples")
        return Epoch(0, self._settings.epochs, math.nan, start, self._first_rate, best=True)

    def _train(self, on_epoch: OnEpoch | None) -> None:
        """Goes back to the best and takes smaller steps where the loss is not finite any more."""
        settings, halvings, steps = self._settings, 0, self._steps(self._first_rate)
        for number in range(1, settings.epochs + 1):
            rate = steps.learning_rate
            try:
                loss, validation = steps.epoch(), self._validate()
                if not math.isfinite(validation.loss):
                    raise NotFinite
            except NotFinite:
                _restore(self._network.module, self._best_state)
                self._notes.append(f"epoch {number}: the loss was not finite at a learning rate of {rate:.3g}")
                broken = Epoch(number, settings.epochs, math.nan, self._best.validation, rate, best=False)
                self._tell(broken, on_epoch)
                halvings += 1
                if halvings > MOST_HALVINGS:
                    self._notes.append(f"training ended early: {halvings} epochs were not finite")
                    return
                steps = self._steps(self._first_rate / 2**halvings, done=number)
                continue
            better = validation.key > self._best.validation.key
            self._tell(Epoch(number, settings.epochs, loss, validation, rate, better), on_epoch)

    def _tell(self, epoch: Epoch, on_epoch: OnEpoch | None) -> None:
        if epoch.best:
            self._best, self._best_state = epoch, _state(self._network.module)
        self._epochs.append(epoch)
        if on_epoch is not None:
            on_epoch(epoch)

    def _steps(self, rate: float, done: int = 0) -> Steps:
        """Training from here on, `done` epochs being over."""
        module, sgd = self._network.module, self._settings.optimizer is Optimizer.SGD
        parameters = list(module.parameters())
        optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True)
            if sgd
            else torch.optim.Adam(parameters, rate)
        )
        return Steps(self._predict, optimizer, self._settings, self._inputs, self._training, self._loss, done)

    def _loss(self, outputs: Sequence[Tensor], chosen: Tensor) -> Tensor:
        labels = None if self._labels is None else self._labels[chosen]
        return self._criterion(outputs, labels, None if self._teacher is None else self._teacher(chosen))

    def _validate(self) -> Validation:
        """In parts, so that large outputs never lie in memory for all samples at once."""
        total, right, size = 0.0, 0, max(self._settings.batch, self._predict.batch)
        with torch.no_grad():
            for chosen in self._validation.split(size):
                outputs = self._predict([tensor[chosen] for tensor in self._inputs])
                total += len(chosen) * float(self._loss(outputs, chosen))
                if self._counts_classes and self._labels is not None:
                    right += self._criterion.right(outputs, self._labels[chosen])
        held = len(self._validation)
        numbers = held if self._labels is None else self._labels[self._validation].numel()
        return Validation(total / held, right / numbers if self._counts_classes else None)

    @property
    def _counts_classes(self) -> bool:
        return self._labels is not None and self._criterion.loss is Loss.CROSS_ENTROPY

    def _checked_criterion(self, loss: Loss) -> Criterion:
        outputs = self._predict([tensor[:_TRIED] for tensor in self._inputs])
        if not outputs[0].is_floating_point():
            raise ModelError("the model's first output has integers, through which no gradient passes")
        if self._labels is not None:
            require_fit(outputs[0], self._labels[:_TRIED], loss, self._labels)
        teacher = self._teacher
        if teacher is not None and teacher.shapes != tuple(tuple(output.shape[1:]) for output in outputs):
            raise UsageError("the original model has other outputs than the compressed one")
        share = 0.0 if teacher is None else 1.0 if self._labels is None else self._settings.distillation
        scale = mean_square(self._labels) if self._labels is not None and loss is Loss.MSE else 1.0
        scales = () if teacher is None else teacher.scales
        softmax = ends_in_softmax(self._network.model)
        return Criterion(loss, softmax, share, self._settings.temperature, scale, scales)


def _state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _restore(module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, tensor in module.state_dict().items():
        tensor.copy_(state[name])


@contextlib.contextmanager
def _reproducible(settings: FinetuneSettings) -> Iterator[None]:
    """The same random numbers and sums for the same settings; torch is left as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            yield
    finally:
        torch.set_num_threads(threads)
