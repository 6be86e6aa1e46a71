"""How a model is fine-tuned."""

from __future__ import annotations

import math
from enum import StrEnum

import msgspec

from hetrl.errors import UsageError

WITH_NORMS = 1e-3  # a usual step of Adam
WITHOUT_NORMS = 3e-4  # nothing keeps activations in range where BatchNormalization is folded away
SGD_FACTOR = 10.0  # plain gradients need larger steps than Adam's
MAX_EPOCHS = 10_000
MAX_BATCH = 4096
MAX_SEED = 1 << 32


class Optimizer(StrEnum):
    ADAM = "adam"
    SGD = "sgd"


class Loss(StrEnum):
    """What the outputs are held against.

    `cross-entropy`: class labels; an output that ends in Softmax is taken as probabilities. `mse`: targets of the
    output's shape, relative to their mean square.
    """

    CROSS_ENTROPY = "cross-entropy"
    MSE = "mse"


class FinetuneSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is fine-tuned.

    :param epochs: passes over the training part of the data.
    :param learning_rate: of the first step, None for a usual one; it falls to 0 along a cosine (Loshchilov and Hutter,
        "SGDR", ICLR 2017).
    :param batch: samples per step.
    :param seed: of the split, the order and the dropout; the same seed gives the same bytes.
    :param optimizer: Adam (Kingma and Ba, ICLR 2015), or SGD with Nesterov's momentum of 0.9.
    :param distillation: share (0 to 1) of the loss that compares with the teacher; without a teacher it is 0.
    :param temperature: of the teacher's class probabilities.
    :param validation_share: share of the data that only chooses the best epoch.
    :param gradient_norm: longer gradients are shortened to this Euclidean norm.
    :param threads: of torch; the bytes are the same for the same number.
    """

    epochs: int = 10
    learning_rate: float | None = None
    batch: int = 32
    seed: int = 0
    optimizer: Optimizer = Optimizer.ADAM
    distillation: float = 0.5
    temperature: float = 4.0
    validation_share: float = 0.15
    gradient_norm: float = 1.0
    threads: int = 1

    def __post_init__(self) -> None:
        _require(1 <= self.epochs <= MAX_EPOCHS, f"{self.epochs} epochs", "give --finetune 10, for example")
        rate = self.learning_rate
        _require(rate is None or 0 < rate <= 10, f"a learning rate of {rate}", "1e-3 is a usual one")
        _require(1 <= self.batch <= MAX_BATCH, f"a batch of {self.batch}", f"give 1 to {MAX_BATCH} samples")
        _require(0 <= self.seed < MAX_SEED, f"the seed {self.seed}", "give 0 to 4294967295")
        _require(0 <= self.distillation <= 1, f"a distillation share of {self.distillation}", "give 0 to 1")
        _require(0 < self.temperature <= 100, f"a temperature of {self.temperature}", "give 1 to 20")
        _require(0 < self.validation_share <= 0.5, f"a validation share of {self.validation_share}", "give up to 0.5")
        norm = self.gradient_norm
        _require(norm > 0 and math.isfinite(norm), f"a gradient norm of {norm}", "1 is a usual one")
        _require(1 <= self.threads <= 1024, f"{self.threads} threads", "give 1 or more")

    def first_rate(self, *, norms: bool) -> float:
        """The learning rate of the first step, for a network with or without normalizations."""
        if self.learning_rate is not None:
            return self.learning_rate
        usual = WITH_NORMS if norms else WITHOUT_NORMS
        return usual * SGD_FACTOR if self.optimizer is Optimizer.SGD else usual


def _require(holds: bool, what: str, hint: str) -> None:
    if not holds:
        raise UsageError(f"fine-tuning with {what} makes no sense", hint)
