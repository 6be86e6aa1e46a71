"""PoseNet as CoDL measured it: a convolutional pose machine for hands (Simon, Joo, Matthews and Sheikh, "Hand Keypoint
Detection in Single Images using Multiview Bootstrapping", CVPR 2017, with 21 maps and three stages), after the operator
list of csu-eis/CoDL (`hetrl/data/codl_ops.csv`). Where the two differ is in docs/zoo.md."""

from __future__ import annotations

from hetrl.zoo.builder import Blueprint, Builder

# Channels of the 3x3 convolutions of each part of the features; a pool lies between two parts.
_FEATURES = ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 256, 256, 256, 256, 128))
_MAPS = 21  # one per joint
_AFTER_POOL = 0.63  # see vgg.py


def posenet(size: tuple[int, int]) -> Blueprint:
    """31 convolutions and 3 pools; input `data` 1x3xHxW (multiples of 8), output `maps3` of an eighth of that size.

    Stages 2 and 3 read the features and the maps of the stage before, joined.
    """
    net = Builder("posenet")
    x = net.input("data", (1, 3, *size))
    for part, widths in enumerate(_FEATURES, 1):
        if part > 1:
            x = net.max_pool(x, f"pool{part - 1}", 2, 2)
        for layer, channels in enumerate(widths, 1):
            gain = _AFTER_POOL if layer == 1 and part > 1 else 1.0
            x = _conv(net, x, f"conv{part}_{layer}", channels, 3, gain)
    features = x
    x = _conv(net, x, "stage1.conv1", 512, 1)
    maps = net.conv(x, "maps1", _MAPS, 1)
    for stage in (2, 3):
        x = net.concat([features, maps], f"stage{stage}.concat")
        for layer in range(1, 6):
            x = _conv(net, x, f"stage{stage}.conv{layer}", 128, 7)
        x = _conv(net, x, f"stage{stage}.conv6", 128, 1)
        maps = net.conv(x, f"maps{stage}", _MAPS, 1)
    return net.finish(maps)


def _conv(net: Builder, x: str, name: str, channels: int, kernel: int, gain: float = 1.0) -> str:
    return net.activation(net.conv(x, name, channels, kernel, gain=gain), f"{name}.relu")
