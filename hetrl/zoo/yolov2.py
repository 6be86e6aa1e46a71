"""YOLOv2 as CoDL measured it: Redmon and Farhadi, "YOLO9000: Better, Faster, Stronger", CVPR 2017, and the operator
list of csu-eis/CoDL (`hetrl/data/codl_ops.csv`). Where the two differ is in docs/zoo.md."""

from __future__ import annotations

from hetrl.zoo.builder import Blueprint, Builder

# The body: (channels, kernel) of a convolution, None for a pool.
_LAYERS = (
    *((32, 3), None, (64, 3), None),
    *((128, 3), (64, 1), (128, 3), None),
    *((256, 3), (128, 1), (256, 3), None),
    *((512, 3), (256, 1), (512, 3), (256, 1), (512, 3), None),
    *((1024, 3), (512, 1), (1024, 3), (512, 1), (1024, 3)),
    *((1024, 3), (1024, 3)),
)
_BOXES = 125  # 5 anchors of 4 coordinates, confidence and 20 classes
_AFTER_POOL = 0.63  # see vgg.py


def yolov2(size: tuple[int, int]) -> Blueprint:
    """22 convolutions and 5 pools; input `data` 1x3xHxW (multiples of 32), output `features`.

    The list's last two convolutions read 1024 and 125 channels: a slice lets one read the other.
    """
    net = Builder("yolov2")
    x = net.input("data", (1, 3, *size))
    gain, convs, pools = 1.0, 0, 0
    for layer in _LAYERS:
        if layer is None:
            pools += 1
            x = net.max_pool(x, f"pool{pools}", 2, 2)
            gain = _AFTER_POOL
        else:
            convs += 1
            x = _conv(net, x, f"conv{convs}", *layer, gain)
            gain = 1.0
    x = _conv(net, x, "conv21", 1536, 3)
    x = net.first_channels(x, "slice", _BOXES)
    return net.finish(net.conv(x, "features", 1024, 3))


def _conv(net: Builder, x: str, name: str, channels: int, kernel: int, gain: float = 1.0) -> str:
    """With the normalization folded in, as it is deployed."""
    x = net.conv(x, name, channels, kernel, gain=gain)
    return net.activation(x, f"{name}.leaky", "LeakyRelu", alpha=0.1)
