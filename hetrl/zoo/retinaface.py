"""RetinaFace as CoDL measured it: Deng, Guo, Ververas, Kotsia and Zafeiriou, "RetinaFace: Single-Shot Multi-Level Face
Localisation in the Wild", CVPR 2020, and the 87 operators of csu-eis/CoDL (`hetrl/data/codl_ops.csv`): a ResNet-50
whose stages end in their stride, a feature pyramid, and on each of its five levels a context module with two heads.
Where the two differ is in docs/zoo.md."""

from __future__ import annotations

from hetrl.zoo.builder import Blueprint, Builder

_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
_CONTEXT = (128, 64, 64)
_BOXES, _CLASSES = 12, 6  # three anchors: coordinates, face or not
# Seeded weights only: keeps what pools and sums give near 1.
_AFTER_POOL, _BRANCH, _MERGE = 0.63, 0.3, 0.5


def retinaface(size: tuple[int, int]) -> Blueprint:
    """86 convolutions; input `data` 1x3xHxW (multiples of 64, at least 128), outputs `boxes1`, ..., `classes5`."""
    net = Builder("retinaface")
    x = net.input("data", (1, 3, *size))
    boxes, contexts = [], []
    for number, level in enumerate(_pyramid(net, *_backbone(net, x)), 1):
        contexts.append(_context(net, level, number))
        boxes.append(net.conv(contexts[-1], f"boxes{number}", _BOXES, 3))
    classes = [net.conv(x, f"classes{number}", _CLASSES, 3) for number, x in enumerate(contexts, 1)]
    return net.finish(*boxes, *classes)


def _conv(net: Builder, x: str, name: str, channels: int, kernel: int = 1, gain: float = 1.0) -> str:
    return net.activation(net.conv(x, name, channels, kernel, gain=gain), f"{name}.relu")


def _backbone(net: Builder, x: str) -> tuple[str, str, str, str]:
    """The maps that the pyramid reads, at a quarter, 1/8, 1/16 and 1/32 of the input's size."""
    x = net.activation(net.conv(x, "conv1", 64, 7, stride=2, pad=3), "conv1.relu")
    x = net.max_pool(x, "pool1", 2, 2)
    before_stride, ends = x, []
    for stage, (depth, width) in enumerate(_STAGES, 1):
        for block in range(1, depth + 1):
            before_stride = x if stage == 1 and block == depth else before_stride
            x = _block(net, x, f"layer{stage}.{block}", width, halve=block == depth and stage < len(_STAGES))
        ends.append(x)
    return before_stride, ends[0], ends[1], ends[3]


def _block(net: Builder, x: str, name: str, width: int, *, halve: bool) -> str:
    """A bottleneck; the shortcut is the input itself, every second pixel of it, or none where channels change."""
    branch = _conv(net, x, f"{name}.conv1", width, gain=_AFTER_POOL if name == "layer1.1" else 1.0)
    if halve:
        pad = 1 if name.startswith("layer3") else (0, 0, 1, 1)  # both as listed
        branch = net.conv(branch, f"{name}.conv2", width, 3, stride=2, pad=pad)
        branch = net.activation(branch, f"{name}.conv2.relu")
    elif name == "layer4.2":  # the list pads only its rows; two columns of zeros make up for it
        branch = net.activation(net.conv(branch, f"{name}.conv2", width, 3, pad=(1, 0)), f"{name}.conv2.relu")
        branch = net.zero_pad(branch, f"{name}.pad", (0, 1))
    else:
        branch = _conv(net, branch, f"{name}.conv2", width, 3)
    if net.shape(x)[1] != 4 * width:
        return _conv(net, branch, f"{name}.conv3", 4 * width)
    branch = net.conv(branch, f"{name}.conv3", 4 * width, 1, gain=_BRANCH)
    shortcut = net.max_pool(x, f"{name}.shortcut", 1, 2) if halve else x
    return net.activation(net.add(branch, shortcut, f"{name}.add"), f"{name}.relu")


def _pyramid(net: Builder, c2: str, c3: str, c4: str, c5: str) -> tuple[str, str, str, str, str]:
    """Five maps of 256 channels, from the finest to the coarsest."""
    p5 = net.conv(c5, "lateral5", 256, 1, gain=_MERGE)
    p4 = _merge(net, p5, c4, 4)
    p3 = _merge(net, p4, c3, 3)
    p2 = _merge(net, p3, c2, 2)
    return p2, p3, p4, p5, net.max_pool(p5, "subsample6", 1, 2)


def _merge(net: Builder, above: str, c: str, level: int) -> str:
    up = net.enlarge(above, f"resize{level}", 2)
    up = net.conv(up, f"smooth{level}", 256, 3, gain=_MERGE)
    lateral = net.conv(c, f"lateral{level}", 256, 1, gain=_MERGE)
    return net.add(lateral, up, f"merge{level}")


def _context(net: Builder, x: str, number: int) -> str:
    """Three convolutions side by side, joined and mixed."""
    name = f"context{number}"
    parts = [_conv(net, x, f"{name}.conv{i}", channels, 3) for i, channels in enumerate(_CONTEXT, 1)]
    return _conv(net, net.concat(parts, f"{name}.concat"), f"{name}.conv4", 256, 3)
