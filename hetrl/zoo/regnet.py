"""RegNetX: Radosavovic, Kosaraju, Girshick, He and Dollar, "Designing Network Design Spaces", CVPR 2020, table 7.

X blocks: a residual bottleneck without bottleneck, whose 3x3 convolution is grouped; every stage begins with a stride
of 2 and a projection shortcut. Normalization stays a BatchNormalization node in inference form.
"""

from __future__ import annotations

from hetrl.zoo.builder import Blueprint, Builder

_STEM = 32
# Seeded weights only: keeps the sum of shortcut and branch near the shortcut's size.
_BRANCH, _PROJECTION = 0.3, 0.7


def regnetx_1_6gf(size: tuple[int, int]) -> Blueprint:
    """18 blocks, groups of 24 channels; input `data` 1x3xHxW, output `logits` 1x1000."""
    return _regnetx("regnetx_1_6gf", size, (2, 4, 10, 2), (72, 168, 408, 912), 24)


def regnetx_4gf(size: tuple[int, int]) -> Blueprint:
    """23 blocks, groups of 40 channels; input `data` 1x3xHxW, output `logits` 1x1000."""
    return _regnetx("regnetx_4gf", size, (2, 5, 14, 2), (80, 240, 560, 1360), 40)


def _regnetx(
    name: str, size: tuple[int, int], depths: tuple[int, ...], widths: tuple[int, ...], group_width: int
) -> Blueprint:
    net = Builder(name)
    x = net.input("data", (1, 3, *size))
    x = net.conv(x, "stem.conv", _STEM, 3, stride=2, bias=False)
    x = net.activation(net.batch_norm(x, "stem.bn"), "stem.relu")
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
        for block in range(depth):
            x = _block(net, x, f"stage{stage}.{block}", width, 2 if block == 0 else 1, width // group_width)
    x = net.flatten(net.global_pool(x, "pool"), "flatten")
    return net.finish(net.gemm(x, "logits", 1000))


def _block(net: Builder, x: str, name: str, width: int, stride: int, groups: int) -> str:
    branch = net.conv(x, f"{name}.conv1", width, 1, bias=False)
    branch = net.activation(net.batch_norm(branch, f"{name}.bn1"), f"{name}.relu1")
    branch = net.conv(branch, f"{name}.conv2", width, 3, stride=stride, groups=groups, bias=False)
    branch = net.activation(net.batch_norm(branch, f"{name}.bn2"), f"{name}.relu2")
    branch = net.conv(branch, f"{name}.conv3", width, 1, bias=False)
    branch = net.batch_norm(branch, f"{name}.bn3", gain=_BRANCH)
    shortcut = x
    if stride > 1:
        shortcut = net.conv(x, f"{name}.downsample.0", width, 1, stride=stride, pad=0, bias=False)
        shortcut = net.batch_norm(shortcut, f"{name}.downsample.1", gain=_PROJECTION)
    return net.activation(net.add(branch, shortcut, f"{name}.add"), f"{name}.relu3")
