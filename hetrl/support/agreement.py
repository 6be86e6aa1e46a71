"""Where the built-in device files and the support rules disagree about ONNX operator types."""

from __future__ import annotations

from dataclasses import dataclass

from hetrl.device_bridge.spec import Processor, load_spec
from hetrl.support.rules import rule_set

# Engine set and unit of a device file: the rules that describe it. d1, d3 and d7 have a Hexagon before the HTP.
_RULES = {
    ("d1", "mace", "gpu"): "mace_gpu",
    ("d1", "ncnn", "gpu"): "ncnn_vulkan",
    ("d1", "tflite", "gpu"): "tflite_gpu",
    ("d1", "tflite", "dsp"): "tflite_hexagon",
    ("d4", "tflite", "dsp"): "qnn_htp",
    ("d2", "tflite", "npu"): "kirin_npu",
}


@dataclass(frozen=True)
class Agreement:
    """One processor.

    :param refused_but_listed: types that the device file refuses and the list takes.
    :param taken_but_excluded: types that the device file takes and the list names as refused.
    """

    device: str
    processor: str
    rules: str
    refused_but_listed: tuple[str, ...]
    taken_but_excluded: tuple[str, ...]


def agreements() -> list[Agreement]:
    """One entry for each kind of processor in the built-in device files."""
    found = []
    for (device, engine, unit), name in _RULES.items():
        processor = next(p for p in load_spec(device).engine(engine).processors if p.unit == unit)
        found.append(_compare(device, processor, name))
    return found


def _compare(device: str, processor: Processor, name: str) -> Agreement:
    rules = rule_set(name)
    types = {op_type for verdict in rules.verdicts.values() for op_type in verdict.onnx}
    taken = {op_type for op_type in types if rules.onnx_refusal(op_type) is None}
    refused = set(processor.unsupported)
    return Agreement(device, processor.id, name, tuple(sorted(refused & taken)), tuple(sorted(types - taken - refused)))
