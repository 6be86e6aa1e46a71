"""VGG: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
table 1 (configuration D has 16 weight layers)."""

from __future__ import annotations

from hetrl.zoo.builder import Blueprint, Builder

_STAGES_16 = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
# A maximum over 2x2 raises the mean square of what a Relu leaves about 2.5 times; the layer behind takes it back.
_AFTER_POOL = 0.63


def vgg16(size: tuple[int, int]) -> Blueprint:
    """13 convolutions of 3x3, 5 pools, 3 dense layers; input `data` 1x3xHxW (at least 32), output `logits` 1x1000."""
    net = Builder("vgg16")
    x = net.input("data", (1, 3, *size))
    for stage, (depth, channels) in enumerate(_STAGES_16, 1):
        for layer in range(1, depth + 1):
            gain = _AFTER_POOL if layer == 1 and stage > 1 else 1.0
            x = net.conv(x, f"conv{stage}_{layer}", channels, 3, gain=gain)
            x = net.activation(x, f"relu{stage}_{layer}")
        x = net.max_pool(x, f"pool{stage}", 2, 2)
    x = net.flatten(x, "flatten")
    x = net.activation(net.gemm(x, "fc6", 4096, gain=_AFTER_POOL), "relu6")
    x = net.activation(net.gemm(x, "fc7", 4096), "relu7")
    return net.finish(net.gemm(x, "logits", 1000))
