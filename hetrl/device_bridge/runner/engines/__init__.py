"""The engines that a runner knows, each in a module of its name."""

from __future__ import annotations

from importlib import import_module

from hetrl.device_bridge.runner.engines.base import Engine

NAMES = ("onnxruntime", "openvino", "ncnn")


def find_engine(name: str) -> Engine:
    """The engine of that name; its library is imported when it is first used.

    :raises ValueError: there is none of that name.
    """
    if name not in NAMES:
        raise ValueError(f"there is no engine {name!r}; there are {', '.join(NAMES)}")
    engine: Engine = import_module(f"hetrl.device_bridge.runner.engines.{name}").ENGINE
    return engine
