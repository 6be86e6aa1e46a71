"""Bottleneck networks of AI Hub's profiles: structure only, for counting operators.

ResNet (He et al., CVPR 2016), Wide ResNet (Zagoruyko and Komodakis, BMVC 2016), ResNeXt (Xie et al., CVPR 2017) and
RegNetX (Radosavovic et al., CVPR 2020), with depths and widths as torchvision 0.28 defines them.
"""

from __future__ import annotations

from dataclasses import dataclass

from hetrl.zoo.blueprint import Blueprint
from hetrl.zoo.builder import Builder
from hetrl.zoo.resnet import resnet18


@dataclass(frozen=True)
class Bottlenecks:
    """Blocks of 1x1, (grouped) 3x3 and 1x1 convolutions.

    :param inner, outer: channels of the 3x3 convolution and of the block, per stage.
    :param group_width: channels of one group of the 3x3 convolution; 0: one group.
    :param pooled: a 7x7 stem with a pool behind it and no stride in the first stage (ResNet), or a 3x3 one (RegNet).
    """

    depths: tuple[int, ...]
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    group_width: tuple[int, ...]
    pooled: bool = True


_OUTER = (256, 512, 1024, 2048)
_NETWORKS = {
    "resnet50": Bottlenecks((3, 4, 6, 3), (64, 128, 256, 512), _OUTER, (0, 0, 0, 0)),
    "resnet101": Bottlenecks((3, 4, 23, 3), (64, 128, 256, 512), _OUTER, (0, 0, 0, 0)),
    "wide_resnet50_2": Bottlenecks((3, 4, 6, 3), (128, 256, 512, 1024), _OUTER, (0, 0, 0, 0)),
    "resnext50_32x4d": Bottlenecks((3, 4, 6, 3), (128, 256, 512, 1024), _OUTER, (4, 8, 16, 32)),
    "resnext101_32x8d": Bottlenecks((3, 4, 23, 3), (256, 512, 1024, 2048), _OUTER, (8, 16, 32, 64)),
    "regnet_x_3_2gf": Bottlenecks((2, 6, 15, 2), (96, 192, 432, 1008), (96, 192, 432, 1008), (48,) * 4, pooled=False),
}
NAMES = ("resnet18", *_NETWORKS)


def network(name: str) -> Blueprint:
    """One of `NAMES` at 224x224; KeyError for any other."""
    if name == "resnet18":
        return resnet18((224, 224))
    plan = _NETWORKS[name]
    net = Builder(name)
    x = net.input("data", (1, 3, 224, 224))
    x = _conv(net, x, "stem", 64 if plan.pooled else 32, 7 if plan.pooled else 3, stride=2)
    if plan.pooled:
        x = net.max_pool(x, "pool", 3, 2, pad=1)
    for stage, depth in enumerate(plan.depths):
        for block in range(depth):
            x = _block(net, x, f"stage{stage}.{block}", plan, stage, first=block == 0)
    return net.finish(net.gemm(net.flatten(net.global_pool(x, "mean"), "flatten"), "logits", 1000))


def _block(net: Builder, x: str, name: str, plan: Bottlenecks, stage: int, *, first: bool) -> str:
    inner, outer, width = plan.inner[stage], plan.outer[stage], plan.group_width[stage]
    stride = 2 if first and (stage or not plan.pooled) else 1
    y = _conv(net, x, f"{name}.1", inner, 1)
    y = _conv(net, y, f"{name}.2", inner, 3, stride=stride, groups=inner // width if width else 1)
    y = net.conv(y, f"{name}.3", outer, 1)
    shortcut = net.conv(x, f"{name}.shortcut", outer, 1, stride=stride, pad=0) if first else x
    return net.activation(net.add(y, shortcut, f"{name}.add"), f"{name}.out")


def _conv(net: Builder, x: str, name: str, channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> str:
    """A convolution with its normalization folded in, and a Relu."""
    return net.activation(net.conv(x, name, channels, kernel, stride=stride, groups=groups), f"{name}.relu")
