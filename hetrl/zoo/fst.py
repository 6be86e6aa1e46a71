"""Fast style transfer as CoDL measured it: Johnson, Alahi and Fei-Fei, "Perceptual Losses for Real-Time Style Transfer
and Super-Resolution", ECCV 2016, and the operator list of csu-eis/CoDL (`hetrl/data/codl_ops.csv`). Where the two
differ is in docs/zoo.md."""

from __future__ import annotations

from hetrl.zoo.builder import Blueprint, Builder

_BRANCH = 0.5  # seeded weights only: keeps a residual sum near the shortcut's size


def fst(size: tuple[int, int]) -> Blueprint:
    """14 convolutions, five residual blocks; input `data` 1x3xHxW (multiples of 4), output `image` of the same size.

    The list has no transposed convolutions: a slice and a resize make what its last convolution reads.
    """
    net = Builder("fst")
    x = net.input("data", (1, 3, *size))
    x = net.activation(net.conv(x, "conv1", 32, 9), "relu1")
    for number, channels in ((2, 64), (3, 128)):
        x = net.conv(x, f"conv{number}", channels, 3, stride=2, pad=(0, 0, 1, 1))
        x = net.activation(x, f"relu{number}")
    for block in range(1, 6):
        name = f"block{block}"
        branch = net.activation(net.conv(x, f"{name}.conv1", 128, 3), f"{name}.relu")
        branch = net.conv(branch, f"{name}.conv2", 128, 3, gain=_BRANCH)
        x = net.add(branch, x, f"{name}.add")
    x = net.enlarge(net.first_channels(x, "slice", 32), "resize", 4)
    return net.finish(net.conv(x, "image", 3, 9))
