"""The rules against AI Hub's profiles, which count how many of a network's layers ran on the NPU, the GPU and the CPU.

Counted are the runtime's layers, so that a total can be compared with the lowered graph's, and the share that left the
processor with the share that the rules predict. Profiles give no reasons and no names.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from hetrl.graph.reader import graph_from_model
from hetrl.support.lowering import RuntimeOp, lower
from hetrl.support.networks import NAMES, network
from hetrl.support.partition import Limits, kept
from hetrl.support.rules import RuleSet, rule_set

_SILICON = {  # AI Hub's boards, and the rules that should describe them
    "hexagon698": ("QCS8250 DSP", "qnn_hvx", "dsp"),
    "adreno650": ("QCS8250 GPU", "tflite_gpu", "gpu"),
    "hexagon770": ("QCS6490 HTP", "qnn_htp", "dsp"),
    "htp_v69": ("QCS8450 HTP", "qnn_htp", "dsp"),
}
# Around the network: the input's quantization and normalization (two operators), the output's dequantization.
_BEFORE, _AFTER = ("QUANTIZE", "MUL", "SUB"), ("DEQUANTIZE",)
_HTP_NAMES = {"QUANTIZE": "QuantizeLinear", "DEQUANTIZE": "DequantizeLinear", "MUL": "Mul", "SUB": "Sub", "PAD": "Pad",
              "CONV_2D": "Conv", "GROUPED_CONV_2D": "Conv", "DEPTHWISE_CONV_2D": "Conv", "ADD": "Add",
              "MAX_POOL_2D": "MaxPool", "MEAN": "GlobalAveragePool", "RESHAPE": "Reshape",
              "FULLY_CONNECTED": "Gemm"}  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """Layers of one profile by the processor that ran them."""

    network: str
    silicon: str
    precision: str
    published: str
    npu: int
    gpu: int
    cpu: int

    @property
    def total(self) -> int:
        return self.npu + self.gpu + self.cpu

    @property
    def board(self) -> str:
        return _SILICON[self.silicon][0]

    @property
    def left(self) -> float:
        """Share of layers that left the processor which the profile is of."""
        ran = self.npu if _SILICON[self.silicon][2] == "dsp" else self.gpu
        return 1 - ran / self.total


def profiles() -> Iterator[Profile]:
    """AI Hub's profiles of the networks whose layers hetrl has, TFLite with the QNN delegate or the GPU's."""
    for r in _rows("tflite_latencies.csv"):
        npu, gpu, cpu = (int(r[f"ops_{unit}"] or 0) for unit in ("dsp", "gpu", "cpu"))
        if r["silicon"] in _SILICON and npu + gpu + cpu:
            yield Profile(r["network"], r["silicon"], r["precision"], r["note"][-10:], npu, gpu, cpu)


def predicted_left(profile: Profile, limits: Limits) -> float | None:
    """Share of layers that leave the processor by the rules; None where the network's wiring would be needed.

    :param limits: what the delegate keeps of its partitions.
    """
    rules = rule_set(_SILICON[profile.silicon][1])
    if profile.network in NAMES:
        ops = wrapped(profile.network)
        taken = [_takes(rules, op.name) for op in ops]
        return 1 - len(kept(ops, taken, limits)) / len(ops)
    return None if any(not _takes(rules, name) for name in _convolutions(profile.network)) else 0.0


@cache
def wrapped(name: str) -> tuple[RuntimeOp, ...]:
    """A network's operators as AI Hub profiles them: with what is around it."""
    ops = [RuntimeOp(op, op, (i - 1,) if i else ()) for i, op in enumerate(_BEFORE)]
    shift = len(ops)
    for op in lower(graph_from_model(network(name).model, name=name)):
        reads = tuple(read + shift for read in op.reads) or (shift - 1,)
        ops.append(RuntimeOp(op.name, op.node, reads))
    for op_name in _AFTER:
        ops.append(RuntimeOp(op_name, op_name, (len(ops) - 1,)))
    return tuple(ops)


def _takes(rules: RuleSet, name: str) -> bool:
    if rules.name == "qnn_htp":  # its list is of ONNX operators
        return name in _HTP_NAMES and rules.onnx_refusal(_HTP_NAMES[name]) is None
    if rules.name == "tflite_gpu" and name in ("QUANTIZE", "DEQUANTIZE"):
        return True  # AI Hub allows the GPU delegate quantized models
    return rules.refusal(name) is None


def _convolutions(name: str) -> set[str]:
    """Kinds of convolutions of a network, from its layers alone."""
    found = set()
    for r in _rows("tflite_layers.csv"):
        if r["network"] == name and r["kind"] == "conv":
            groups, channels = int(r["groups"]), int(r["in_channels"])
            plain = groups == 1
            found.add("CONV_2D" if plain else "DEPTHWISE_CONV_2D" if groups == channels else "GROUPED_CONV_2D")
    return found


@cache
def _rows(file: str) -> tuple[dict[str, str], ...]:
    with (resources.files("hetrl.data") / file).open(encoding="utf-8") as stream:
        return tuple(csv.DictReader(stream))
