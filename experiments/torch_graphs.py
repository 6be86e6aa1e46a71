"""Two networks that torch exports, of sizes that phones run: one with many branches, one of cheap layers."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.torch_models import Inception, InvertedResidual, export  # noqa: E402


def branchy() -> nn.Module:
    """After GoogLeNet: a stem, then six modules of four branches; input 1x3x224x224."""
    widths = (24, 32, 48, 48, 64, 64)
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(2)]
    channels = 32
    for number, width in enumerate(widths):
        layers.append(Inception(channels, width))
        channels = 4 * width
        if number in (1, 3):
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 100))


def mobile() -> nn.Module:
    """After MobileNetV2: twelve inverted residuals; input 1x3x288x288."""
    blocks = ((16, 1, 1), (24, 2, 6), (24, 1, 6), (32, 2, 6), (32, 1, 6), (64, 2, 6), (64, 1, 6), (64, 1, 6))
    blocks += ((96, 1, 6), (96, 1, 6), (160, 2, 6), (160, 1, 6))
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    channels = 32
    for out, stride, expansion in blocks:
        layers.append(InvertedResidual(channels, out, stride, expansion))
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 100))


NETWORKS = {"branchy": (branchy, 224), "mobile": (mobile, 288)}


def exported(name: str, folder: Path) -> Path:
    """The ONNX file of one of `NETWORKS`, made in `folder` if it is not there."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        build, size = NETWORKS[name]
        torch.manual_seed(0)
        export(build().eval(), path.with_suffix(".new"), (1, 3, size, size)).rename(path)
    return path
