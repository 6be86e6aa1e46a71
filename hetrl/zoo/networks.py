"""The functions that build the networks of the catalog."""

from __future__ import annotations

from collections.abc import Callable

from hetrl.zoo.builder import Blueprint
from hetrl.zoo.resnet import resnet18
from hetrl.zoo.vgg import vgg16

_BUILDERS: dict[str, Callable[[], Blueprint]] = {"resnet18": resnet18, "vgg16": vgg16}


def blueprint(name: str) -> Blueprint:
    """A network of the catalog, without weights; KeyError for any other name."""
    return _BUILDERS[name]()
