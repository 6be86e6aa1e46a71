"""A small convolutional network trained on scikit-learn's digits, as ONNX, with its data as npz.

The data are 1,797 grey pictures of 8 x 8 (Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, 1998), which scikit-learn brings with it. The same seed gives the same network.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

EPOCHS = 8
BATCH = 48
SEED = 0


@dataclass(frozen=True)
class Digits:
    """Files of the trained network and of its data.

    :param model: ONNX, input `data` of 1x1x8x8, output `scores` of 1x10, BatchNorm not folded.
    :param test: npz of `inputs` (719x1x8x8, float32, 0 to 1) and `labels` (int64): never trained on.
    :param train: the same of the 1,078 pictures that the network was trained on.
    """

    model: Path
    test: Path
    train: Path


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*conv(channels, channels, 3), nn.ReLU(), *conv(channels, channels, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.layers(x))


class DigitsNet(nn.Module):
    """Two residual blocks and a depthwise one; input Nx1x8x8, 2.8 million multiply-accumulates."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv(1, 32, 3),
            nn.ReLU(),
            Residual(32),
            *conv(32, 64, 3, stride=2),
            nn.ReLU(),
            Residual(64),
            *conv(64, 64, 3, groups=64),
            nn.ReLU(),
            *conv(64, 128, 1),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(self.features(x), 1)
        scores: torch.Tensor = self.classifier(torch.flatten(pooled, 1))
        return scores


def conv(channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> tuple[nn.Module, nn.Module]:
    convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return convolution, nn.BatchNorm2d(out)


def digits_in(folder: Path) -> Digits:
    """The trained network in `folder`: made by whoever comes first, while other processes wait."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = Digits(folder / "digits.onnx", folder / "digits.npz", folder / "digits-train.npz")
    with (folder / "digits.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not digits.model.exists():
            _make(digits)
    return digits


def _make(digits: Digits) -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pictures, labels = load_digits(return_X_y=True)
    inputs = (pictures.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    parts = train_test_split(inputs, labels.astype(np.int64), test_size=0.4, random_state=SEED, stratify=labels)
    train_inputs, test_inputs, train_labels, test_labels = parts
    np.savez(digits.train, inputs=train_inputs, labels=train_labels)
    np.savez(digits.test, inputs=test_inputs, labels=test_labels)
    _export(trained(train_inputs, train_labels), digits.model)


def trained(inputs: np.ndarray, labels: np.ndarray, *, epochs: int = EPOCHS, seed: int = SEED) -> nn.Module:
    """The network after training, in evaluation mode; neither torch's generator nor its threads stay changed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _trained(torch.from_numpy(inputs), torch.from_numpy(labels), epochs)
    finally:
        torch.set_num_threads(threads)


def _trained(inputs: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Module:
    network = DigitsNet()
    steps = epochs * -(-len(inputs) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(inputs)).split(BATCH):
            loss = nn.functional.cross_entropy(network(_shifted(inputs[chosen])), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _shifted(pictures: torch.Tensor) -> torch.Tensor:
    """Each batch moved by up to one pixel, so that the network learns more than the pictures it sees."""
    down, right = torch.randint(0, 3, (2,)).tolist()
    return nn.functional.pad(pictures, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]


def _export(module: nn.Module, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    part = path.with_suffix(".part")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(1, 1, 8, 8),),
            part,
            input_names=["data"],
            output_names=["scores"],
            training=torch.onnx.TrainingMode.PRESERVE,  # leaves BatchNorm unfolded; the module is in evaluation mode
            dynamo=False,
        )
    part.replace(path)  # the model last: it is there when all of it is
