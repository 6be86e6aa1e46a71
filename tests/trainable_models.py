"""Small torch networks with what makes graphs hard to train: written shapes, skips, windows, sequences; and exports.

Structures after DenseNet (Huang et al., CVPR 2017), SENet (Hu et al., CVPR 2018), ShuffleNet (Zhang et al., CVPR 2018),
U-Net (Ronneberger et al., MICCAI 2015) and Swin (Liu et al., ICCV 2021).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import nn

from tests.torch_models import GoogLeNetLike, MobileNetLike, ViTLike


def conv(channels: int, out: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU())


class DenseLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, stride=2)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 4, 3, padding=1)) for c in (8, 12, 16)
        )
        self.pool = nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False)
        self.head = nn.Linear(20, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        logits: torch.Tensor = self.head(self.pool(x).mean((2, 3)))
        return logits


class SELike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, stride=2)
        self.squeeze = nn.Sequential(nn.Linear(16, 4), nn.Hardswish(), nn.Linear(4, 16), nn.Hardsigmoid())
        self.slope = nn.PReLU(16)
        self.head = nn.Conv2d(16, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        scale = self.squeeze(x.mean((2, 3)))
        return F.adaptive_avg_pool2d(self.head(self.slope(x * scale[:, :, None, None] - 0.5)), 1).flatten(1)


class ShuffleLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, stride=2)
        self.branch = nn.Sequential(conv(4, 4, 1), conv(4, 4, groups=4), conv(4, 4, 1))
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return torch.softmax(logits, 1)


class UNetLike(nn.Module):
    """Input and output 1x3x32x32."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = conv(3, 8), conv(8, 16, stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.norm, self.group = nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(4, 16)
        self.end = nn.Conv2d(24, 3, 3, padding=1, padding_mode="reflect")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down(x)
        inner = self.group(self.inner(skip))
        wide = F.interpolate(F.silu(inner), scale_factor=2, mode="bilinear", align_corners=False)[:, :8]
        near = F.interpolate(inner, size=skip.shape[2:], mode="nearest")[:, 8:]
        up = F.leaky_relu(self.norm(self.up(inner)))
        return torch.tanh(self.end(torch.cat([skip + wide, up, near], 1)))


class Sequence(nn.Module):
    """Tokens before samples, and heads taken for samples, as torch's own attention has it; input 1x3x32x32."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.norm = nn.LayerNorm(16)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).permute(2, 0, 1)
        normal = self.norm(tokens)
        length, batch, width = tokens.shape
        q, k, v = (
            part(normal).view(length, batch * 2, width // 2).transpose(0, 1) for part in (self.q, self.k, self.v)
        )
        mixed = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
        back = mixed.transpose(0, 1).contiguous().view(length, batch, width)
        logits: torch.Tensor = self.head((tokens + back).mean(0))
        return logits


class SwinLike(nn.Module):
    """Attention in windows of 4 x 4, which are taken for samples; input 1x3x32x32."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.qkv = nn.Linear(16, 48)
        self.position = nn.Parameter(torch.randn(1, 16, 16) / 4)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        windows = x.view(n, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
        q, k, v = self.qkv(windows).reshape(-1, 16, 3, c).unbind(2)
        mixed = torch.softmax(q @ k.transpose(-2, -1) / 4 + self.position, -1) @ v
        back = mixed.view(n, h // 4, w // 4, 4, 4, c).transpose(2, 3).reshape(n, h, w, c)
        logits: torch.Tensor = self.head((x + back).mean((1, 2)))
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet": MobileNetLike,
    "googlenet": GoogLeNetLike,
    "vit": ViTLike,
    "densenet": DenseLike,
    "senet": SELike,
    "shufflenet": ShuffleLike,
    "unet": UNetLike,
    "sequence": Sequence,
    "swin": SwinLike,
}


def exported(
    name: str, folder: Path, *, opset: int = 17, folded: bool = False, dynamo: bool = False, batch: int | str = 1
) -> onnx.ModelProto:
    """One of `NETWORKS` with seeded weights and random running statistics, its input called `data`.

    :param batch: samples at once, or a name for any number of them.
    :param folded: whether BatchNormalization is folded into convolutions.
    """
    torch.manual_seed(0)
    module = NETWORKS[name]()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, 0, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
    path = folder / f"{name}-{opset}-{folded}-{dynamo}-{batch}.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.randn(batch if isinstance(batch, int) else 2, 3, 32, 32),),
            path,
            input_names=["data"],
            opset_version=opset,
            external_data=False,
            verbose=False,
            dynamo=dynamo,
            dynamic_axes={"data": {0: batch}} if isinstance(batch, str) else None,
            **({} if dynamo else {"training": mode}),
        )
    return onnx.load(path)
