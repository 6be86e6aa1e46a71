"""ResNet: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1.

Projection shortcuts where the shape changes (option B), the stride of a bottleneck on its 3x3 convolution, as in the
common PyTorch version. Normalization stays a BatchNormalization node in inference form; its parameters are counted as
PyTorch counts them, scale and bias, without the running mean and variance.
"""

from __future__ import annotations

from hetrl.zoo.builder import Blueprint, Builder

_WIDTHS = (64, 128, 256, 512)
# Seeded weights only: keeps the sum of shortcut and branch near the shortcut's size.
_BRANCH, _PROJECTION = 0.4, 0.7


def resnet18(size: tuple[int, int]) -> Blueprint:
    """Basic blocks (2, 2, 2, 2); input `data` 1x3xHxW, output `logits` 1x1000."""
    return _resnet("resnet18", size, (2, 2, 2, 2), bottleneck=False)


def resnet34(size: tuple[int, int]) -> Blueprint:
    """Basic blocks (3, 4, 6, 3); input `data` 1x3xHxW, output `logits` 1x1000."""
    return _resnet("resnet34", size, (3, 4, 6, 3), bottleneck=False)


def resnet50(size: tuple[int, int]) -> Blueprint:
    """Bottlenecks (3, 4, 6, 3); input `data` 1x3xHxW, output `logits` 1x1000."""
    return _resnet("resnet50", size, (3, 4, 6, 3), bottleneck=True)


def _resnet(name: str, size: tuple[int, int], depths: tuple[int, int, int, int], *, bottleneck: bool) -> Blueprint:
    net = Builder(name)
    x = net.input("data", (1, 3, *size))
    x = net.conv(x, "conv1", 64, 7, stride=2, bias=False)
    x = net.activation(net.batch_norm(x, "bn1"), "relu1")
    x = net.max_pool(x, "pool1", 3, 2, pad=1)
    for stage, (depth, width) in enumerate(zip(depths, _WIDTHS, strict=True), 1):
        for block in range(depth):
            stride = 2 if block == 0 and stage > 1 else 1
            x = _block(net, x, f"layer{stage}.{block}", width, stride, bottleneck=bottleneck)
    x = net.flatten(net.global_pool(x, "pool5"), "flatten")
    return net.finish(net.gemm(x, "logits", 1000))


def _block(net: Builder, x: str, name: str, width: int, stride: int, *, bottleneck: bool) -> str:
    """A residual block of `width` channels, of four times as many behind a bottleneck."""
    channels = 4 * width if bottleneck else width
    if bottleneck:
        layers = [(width, 1, 1), (width, 3, stride), (channels, 1, 1)]
    else:
        layers = [(width, 3, stride), (width, 3, 1)]
    branch = x
    for index, (out, kernel, step) in enumerate(layers, 1):
        last = index == len(layers)
        branch = net.conv(branch, f"{name}.conv{index}", out, kernel, stride=step, bias=False)
        branch = net.batch_norm(branch, f"{name}.bn{index}", gain=_BRANCH if last else 1.0)
        if not last:
            branch = net.activation(branch, f"{name}.relu{index}")
    shortcut = x
    if stride > 1 or net.shape(x)[1] != channels:
        shortcut = net.conv(x, f"{name}.downsample.0", channels, 1, stride=stride, pad=0, bias=False)
        shortcut = net.batch_norm(shortcut, f"{name}.downsample.1", gain=_PROJECTION)
    return net.activation(net.add(branch, shortcut, f"{name}.add"), f"{name}.relu{len(layers)}")
