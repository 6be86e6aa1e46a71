"""The functions that build the networks of the catalog, and the input size that the catalog describes."""

from __future__ import annotations

from collections.abc import Callable

from hetrl.zoo.blueprint import Blueprint
from hetrl.zoo.fst import fst
from hetrl.zoo.posenet import posenet
from hetrl.zoo.regnet import regnetx_1_6gf, regnetx_4gf
from hetrl.zoo.resnet import resnet18, resnet34, resnet50
from hetrl.zoo.retinaface import retinaface
from hetrl.zoo.vgg import vgg16
from hetrl.zoo.yolov2 import yolov2

_BUILDERS: dict[str, tuple[Callable[[tuple[int, int]], Blueprint], tuple[int, int]]] = {
    "fst": (fst, (480, 640)),
    "posenet": (posenet, (256, 256)),
    "regnetx_1_6gf": (regnetx_1_6gf, (224, 224)),
    "regnetx_4gf": (regnetx_4gf, (224, 224)),
    "resnet18": (resnet18, (224, 224)),
    "resnet34": (resnet34, (224, 224)),
    "resnet50": (resnet50, (224, 224)),
    "retinaface": (retinaface, (640, 640)),
    "vgg16": (vgg16, (224, 224)),
    "yolov2": (yolov2, (416, 416)),
}


def blueprint(name: str, size: tuple[int, int] | None = None) -> Blueprint:
    """A network of the catalog, without weights; KeyError for any other name.

    :param size: height and width of the input; None: the catalog's.
    """
    build, usual = _BUILDERS[name]
    return build(size or usual)
