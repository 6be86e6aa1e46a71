"""Compiles a hetrl bundle for OpenVINO's HETERO. Copy this file: it does without hetrl."""

import json
from pathlib import Path

import openvino


def load(folder, core=None, stand_in=False, **options):
    """With `stand_in`, missing devices are played by further instances of the CPU plugin; `options` are OpenVINO's."""
    core, folder = core or openvino.Core(), Path(folder)
    sidecar = json.loads((folder / "affinity.json").read_text(encoding="utf-8"))
    names, properties = {}, {}
    for device in sidecar["devices"]:
        missing = device["plugin"] not in {name.split(".")[0] for name in core.available_devices}
        if missing and not stand_in:
            raise RuntimeError(f"OpenVINO has no device {device['plugin']} here")
        name = names[device["name"]] = f"CPU_AS_{device['name']}" if missing else device["name"]
        if name != device["plugin"]:
            _another_cpu(core, name)
        properties[name] = device["properties"] | ({"INFERENCE_PRECISION_HINT": "f32"} if missing else {})
    model = core.read_model(folder / "model.xml")
    if len(names) == 1:
        return core.compile_model(model, name, properties[name] | options)
    for operator in model.get_ordered_ops():
        operator.get_rt_info()["affinity"] = names[sidecar["operators"][operator.get_friendly_name()]]
    return core.compile_model(model, "HETERO:" + ",".join(names.values()), {"DEVICE_PROPERTIES": properties} | options)


def _another_cpu(core, name):
    libraries = sorted((Path(openvino.__file__).parent / "libs").iterdir())
    plugin = next(path for path in libraries if "openvino_intel_cpu_plugin" in path.name)
    if name not in core.available_devices:
        core.register_plugin(str(plugin), name)
