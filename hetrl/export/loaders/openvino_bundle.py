"""Compiles a hetrl bundle for OpenVINO's HETERO plugin, every operator on the device that the plan says.

Copy this file into an app: it needs openvino alone.
"""

import json
from pathlib import Path
from typing import Any

import openvino


def load(folder: Any, core: Any = None, stand_in: bool = False) -> Any:
    """:param stand_in: devices that are not there are played by further instances of the CPU plugin."""
    core, folder = core or openvino.Core(), Path(folder)
    sidecar = json.loads((folder / "affinity.json").read_text(encoding="utf-8"))
    names: dict[str, str] = {}
    properties: dict[str, Any] = {}
    for device in sidecar["devices"]:
        missing = device["plugin"] not in {name.split(".")[0] for name in core.available_devices}
        if missing and not stand_in:
            raise RuntimeError(f"OpenVINO has no device {device['plugin']} here")
        name = names[device["name"]] = f"CPU_AS_{device['name']}" if missing else device["name"]
        settings = dict(device["properties"])
        if missing or device["plugin"] != device["name"]:
            _another_cpu(core, name)
        if missing:
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        properties[name] = settings
    model = core.read_model(folder / "model.xml")
    if len(names) == 1:
        (name, settings), *_ = properties.items()
        return core.compile_model(model, name, settings)
    for operator in model.get_ordered_ops():
        operator.get_rt_info()["affinity"] = names[sidecar["operators"][operator.get_friendly_name()]]
    return core.compile_model(model, "HETERO:" + ",".join(names.values()), {"DEVICE_PROPERTIES": properties})


def _another_cpu(core: Any, name: str) -> None:
    libraries = Path(openvino.__file__).parent / "libs"
    plugin = next(path for path in sorted(libraries.iterdir()) if "openvino_intel_cpu_plugin" in path.name)
    if name not in core.available_devices:
        core.register_plugin(str(plugin), name)
