"""More small networks with the structure of well-known ones, of a few thousand parameters each, for 1x3x32x32.

Structures after DenseNet (Huang et al., CVPR 2017), ShuffleNetV2 (Ma et al., ECCV 2018), squeeze and excitation (Hu et
al., CVPR 2018), U-Net (Ronneberger et al., MICCAI 2015), ResNeXt (Xie et al., CVPR 2017) with group normalization (Wu
and He, ECCV 2018), and a text decoder's blocks (RMS normalization, gated hidden layers, fewer keys than queries).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Classifier(nn.Module):
    """Features, their mean over all pixels, and a dense layer."""

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))
        return logits


def conv_norm(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


class DenseLayer(nn.Module):
    """Normalization first; what it makes is put beside what it read."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * growth, 1, bias=False),
            nn.BatchNorm2d(2 * growth),
            nn.ReLU(),
            nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.layers(x)], 1)


def dense_net() -> nn.Module:
    block = [DenseLayer(16 + 8 * number, 8) for number in range(3)]
    transition = [nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 20, 1, bias=False), nn.AvgPool2d(2)]
    second = [DenseLayer(20 + 8 * number, 8) for number in range(2)]
    stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
    return Classifier(nn.Sequential(stem, *block, *transition, *second, nn.BatchNorm2d(36), nn.ReLU()), 36)


class ShuffleUnit(nn.Module):
    """Half of the channels pass; then both halves are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv_norm(half, half, 1),
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            conv_norm(half, half, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, 1)
        x = torch.cat([first, self.branch(second)], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return x.reshape(batch, channels, height, width)


def shuffle_net() -> nn.Module:
    units = [conv_norm(3, 32, 3, 2), ShuffleUnit(32), ShuffleUnit(32), conv_norm(32, 48, 1, 2), ShuffleUnit(48)]
    return Classifier(nn.Sequential(*units), 48)


class Squeezed(nn.Module):
    """A residual block whose channels are weighted by what a small network makes of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm(channels, channels, 3), nn.Conv2d(channels, channels, 3, 1, 1))
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 2, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return F.silu(x + y * self.squeeze(y))


def squeeze_net() -> nn.Module:
    return Classifier(nn.Sequential(conv_norm(3, 16, 3, 2), Squeezed(16), conv_norm(16, 24, 3, 2), Squeezed(24)), 24)


class UNetLike(nn.Module):
    """Down twice, up twice by transposed convolutions, with skips; an image comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv_norm(3, 16, 3), conv_norm(16, 24, 3), conv_norm(24, 32, 3)
        self.up_two, self.up_one = nn.ConvTranspose2d(32, 24, 2, 2), nn.ConvTranspose2d(24, 16, 2, 2)
        self.back_two, self.back_one = conv_norm(48, 24, 3), conv_norm(32, 16, 3)
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        x = self.up_two(self.three(F.max_pool2d(two, 2)))
        x = self.up_one(self.back_two(torch.cat([x, two], 1)))
        image: torch.Tensor = self.last(self.back_one(torch.cat([x, one], 1)))
        return image


class GroupedBlock(nn.Module):
    """ResNeXt's block with group normalization."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, groups=4, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, channels, 1, bias=False),
            nn.GroupNorm(8, channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.layers(x))


def grouped_net() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.GroupNorm(8, 32), nn.ReLU())
    return Classifier(nn.Sequential(stem, GroupedBlock(32, 32), GroupedBlock(32, 48)), 32)


class DecoderBlock(nn.Module):
    """Attention of 8 heads of queries and 2 of keys and values with rotated positions; then gated hidden layers."""

    def __init__(self, width: int, heads: int, shared: int) -> None:
        super().__init__()
        self.size, self.heads, self.shared = width // heads, heads, shared
        self.norm1, self.norm2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, shared * self.size, bias=False)
        self.value = nn.Linear(width, shared * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)
        angles = torch.arange(16)[:, None] / 10 ** (torch.arange(self.size) % (self.size // 2) / 4)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        one, two = x.chunk(2, -1)
        return x * self.cosine + torch.cat([-two, one], -1) * self.sine

    def normed(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        y = self.normed(x, self.norm1)
        q, k, v = (layer(y).view(batch, tokens, -1, self.size).transpose(1, 2) for layer in self.projections())
        repeated = [part.repeat_interleave(self.heads // self.shared, 1) for part in (self.rotated(k), v)]
        weights = torch.softmax(self.rotated(q) @ repeated[0].transpose(-2, -1) * self.size**-0.5, -1)
        x = x + self.out((weights @ repeated[1]).transpose(1, 2).reshape(batch, tokens, width))
        y = self.normed(x, self.norm2)
        result: torch.Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return result

    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.query, self.key, self.value


class DecoderLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 8, 8)
        self.blocks = nn.Sequential(DecoderBlock(64, 8, 2), DecoderBlock(64, 8, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
        return logits


class EncoderLike(nn.Module):
    """torch's own transformer blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.blocks = nn.Sequential(*(_Encoder() for _ in range(2)))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
        return logits


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.hidden = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        result: torch.Tensor = x + self.hidden(self.norm(x))
        return result


NETWORKS = {
    "DenseNetLike": dense_net,
    "ShuffleNetLike": shuffle_net,
    "SqueezeLike": squeeze_net,
    "UNetLike": UNetLike,
    "GroupedLike": grouped_net,
    "DecoderLike": DecoderLike,
    "EncoderLike": EncoderLike,
}
