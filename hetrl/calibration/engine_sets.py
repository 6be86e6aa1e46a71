"""The `tflite`, `ncnn` and `mace_dsp` engine sets of the eight phones, from the stored fits (`data/engine_fits.json`).

Where a phone's own silicon was measured its numbers are the fit's. Where it was not, the nearest silicon's are scaled:
rates by the ratio of peak arithmetic to the power `exponent`, traffic by the ratio of memory bandwidth, launches and
calls not at all. The exponent is 1 for CPUs and for one GPU at another clock, 1/2 between GPUs and between DSPs: from
Snapdragon 855 to 888 a GPU's nominal peak doubles, but measured latencies hardly fall. Two pieces of silicon that
bracket a phone's give their geometric mean.

No network counts as known to these sets (`calibrated_models`): one rate per family of operators for dozens of networks
does not learn any of them. ncnn's VGG-16, which is in the rows, comes out 1.5 to 2.4 times too slow on the Snapdragon
888, as if it had never been seen.

`mace_dsp` is MACE's CPU with the Hexagon as MACE drives it. Nobody published MACE's times there. Both MACE and TFLite's
delegate hand the network to the same library, hexagon-nn, so the DSP's numbers are those of `tflite`, as an assumption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TypeVar

import msgspec

from hetrl.calibration.mace import power_w, sharing_lines
from hetrl.calibration.roofline import PARAMETERS
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import Cost, Engine, Known, Link, Processor, RooflineCost
from hetrl.device_bridge.surrogate.tables import GROUPED_CONV
from hetrl.errors import UnknownName

MACE_DSP = "mace_dsp"
Part = TypeVar("Part", Processor, Cost, Link)

# TFLite's GPU delegate and HiAI take convolutions, pools, element-wise operators, concatenations, resizes and the like;
# integer indexing, sorting, control flow and recurrent layers run on the CPU.
_INDEXING = (
    "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "NonMaxSuppression", "NonZero", "TopK",
    "ArgMax", "ArgMin", "CumSum", "Einsum", "Where", "Loop", "If", "Scan", "LSTM", "GRU", "RNN", "RoiAlign", "OneHot",
    "Attention",
)  # fmt: skip
_NORMS = ("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization", "LpNormalization")


class Fits(msgspec.Struct, frozen=True):
    """The stored file: numbers by engine, group and silicon; figures of held-out networks; what was fitted to."""

    numbers: dict[str, dict[str, dict[str, dict[str, float]]]]
    held_out: dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]]
    networks: dict[str, dict[str, list[str]]]


@cache
def fits() -> Fits:
    """What `experiments/fit_engines.py` wrote."""
    return msgspec.json.decode((resources.files("hetrl.data") / "engine_fits.json").read_bytes(), type=Fits)


@dataclass(frozen=True)
class Peak:
    """What scaling goes by: nominal arithmetic (GFLOPS, or TOPS of a DSP) and memory bandwidth (GB/s)."""

    arithmetic: float
    bandwidth: float


@dataclass(frozen=True)
class From:
    """Where a processor's numbers come from: one or two pieces of silicon, their peak and the phone's.

    :param own: whether that is the phone's own silicon.
    """

    engine: str
    group: str
    silicon: tuple[str, ...]
    there: Peak = Peak(1.0, 1.0)
    here: Peak = Peak(1.0, 1.0)
    exponent: float = 1.0
    own: bool = False


# Four big cores: cores x flop per cycle x GHz; Adreno 640 at 675 MHz in the OnePlus 7T; nominal figures throughout.
_CPU = {
    "d1": Peak(161.6, 34.1), "d2": Peak(156.5, 34.1), "d3": Peak(161.6, 44.0), "d4": Peak(207.1, 51.2),
    "d5": Peak(167.0, 34.1), "d6": Peak(75.5, 29.8), "d7": Peak(167.1, 44.0), "d8": Peak(254.5, 51.2),
    "sd855plus": Peak(163.5, 34.1), "kirin970": Peak(75.5, 29.8),
}  # fmt: skip
_GPU = {
    "d1": Peak(898.6, 34.1), "d2": Peak(358.4, 34.1), "d3": Peak(1202.2, 44.0), "d4": Peak(1720.3, 51.2),
    "d5": Peak(460.8, 34.1), "d6": Peak(199.1, 29.8), "d7": Peak(1372.2, 44.0), "d8": Peak(1085.4, 51.2),
    "sd855plus": Peak(1036.8, 34.1), "kirin970": Peak(220.9, 29.8),
}  # fmt: skip
_OWN = ("d4",)  # SD888 has ncnn rows of its own
_A73 = ("d6",)  # Cortex-A73: no arithmetic in fp16
_MALI = ("d2", "d5", "d6", "d8")
DEVICES = tuple(f"d{i}" for i in range(1, 9))


def _ncnn_cpu(device: str) -> From:
    if device in _OWN:
        return From("ncnn", "cpu", ("sd888:8",), own=True)
    if device == "d8":  # the only other Cortex-X1
        return From("ncnn", "cpu", ("sd888:8",), _CPU["d4"], _CPU["d8"])
    there = "kirin970" if device in _A73 else "sd855plus"
    return From("ncnn", "cpu", (f"{there}:4",), _CPU[there], _CPU[device])


def _ncnn_gpu(device: str) -> From:
    if device in _OWN:
        return From("ncnn", "gpu", ("sd888",), own=True)
    there = "kirin970" if device in _MALI else "sd855plus"
    return From("ncnn", "gpu", (there,), _GPU[there], _GPU[device], 1.0 if device == "d1" else 0.5)


def _tflite_cpu(device: str) -> From:
    return From("tflite", "cpu", ("sd855:4",), _CPU["d1"], _CPU[device], own=device == "d1")


def _tflite_gpu(device: str) -> From:
    if device in ("d3", "d7"):
        return From("tflite", "gpu", ("adreno650",), _GPU["d3"], _GPU[device], own=device == "d3")
    if device == "d4":
        return From("tflite", "gpu", ("adreno650",), _GPU["d3"], _GPU["d4"], 0.5)
    return From("tflite", "gpu", ("adreno640",), _GPU["d1"], _GPU[device], 0.5, own=device == "d1")


# The Kirins' DSPs have no delegate that an app could call, and are left out; d8 has none in the study.
_DSP = {
    "d1": From("tflite", "hvx", ("hexagon698",), Peak(15.0, 44.0), Peak(7.0, 34.1), 0.5),
    "d3": From("tflite", "hvx", ("hexagon698",), own=True),
    "d4": From("tflite", "htp", ("hexagon770", "htp_v69")),
    "d7": From("tflite", "hvx", ("hexagon698",), own=True),
}
_NPU = {
    "d2": From("tflite", "npu", ("kirin810", "kirin990")),
    "d5": From("tflite", "npu", ("kirin990_5g",), own=True),
}
_HAS_NO_ROWS = {  # per (engine, group): numbers that no network in the rows sees
    ("tflite", "cpu"): "grouped_ms_per_gmac",
    ("tflite", "hvx"): "grouped_ms_per_gmac",
    ("tflite", "npu"): "grouped_ms_per_gmac",
}


def _source(origin: From) -> tuple[Source, str]:
    silicon = " and ".join(origin.silicon)
    rows = f"rows of hetrl/data/{origin.engine}_latencies.csv"
    if len(origin.silicon) > 1:
        return Source.SCALED, f"geometric mean of the fits to {silicon}, {rows}"
    if origin.own:
        return Source.FITTED, f"{silicon}, {rows}"
    return Source.SCALED, f"fit to {silicon}, {rows}; rates by peak to the power {origin.exponent:g}"


def _factor(name: str, origin: From) -> float:
    if name.endswith("_per_gmac"):
        return math.pow(origin.there.arithmetic / origin.here.arithmetic, origin.exponent)
    return origin.there.bandwidth / origin.here.bandwidth if name.endswith("_per_mb") else 1.0


def _number(name: str, origin: From) -> Quantity:
    silicon: Mapping[str, Mapping[str, float]] = fits().numbers[origin.engine][origin.group]
    mean = math.prod(silicon[s][name] for s in origin.silicon) ** (1 / len(origin.silicon))
    source, note = _source(origin)
    if _HAS_NO_ROWS.get((origin.engine, origin.group)) == name:
        source, note = Source.ASSUMED, "no network in the rows has such operators; a prior, at the silicon's scale"
    return Quantity(float(f"{mean * _factor(name, origin):.4g}"), source, note)


def cost(origin: From) -> RooflineCost:
    """The cost that the origin's fit and the scaling rule give."""
    return RooflineCost(**{name: _number(name, origin) for name in PARAMETERS})


def _power(unit: str) -> Quantity:
    if unit in ("cpu", "gpu"):
        return Quantity(power_w()[f"{unit}_w"], Source.ASSUMED, f"as MACE's {unit.upper()} runs on d1")
    return Quantity({"dsp": 1.5, "npu": 2.0}[unit], Source.ASSUMED, "a third to a half of the GPU's; not measured")


def _link(host: Processor, accelerator: Processor, origin: From) -> Link:
    lines, assumed = sharing_lines(), Source.ASSUMED
    return Link(
        host=host.id,
        accelerator=accelerator.id,
        map_ms=Quantity(0.0, assumed, "in sync_ms"),
        map_ms_per_melem=Quantity(lines["map_rate"], assumed, "as MACE's GPU on d1"),
        sync_ms=_number("sync_ms", origin),
        image_ms_per_melem=Quantity(0.0, assumed, "the runtime keeps its own layout"),
        contention=Quantity(0.09, assumed, "about MACE's; the engine does not run two processors side by side"),
        splits=False,
    )


def _engine(name: str, parts: list[tuple[str, str, tuple[str, ...], From]]) -> Engine:
    processors = tuple(
        Processor(
            unit=unit, engine=name, precision=precision, unsupported=refused, cost=cost(origin), active_w=_power(unit)
        )
        for unit, precision, refused, origin in parts
    )
    host = processors[0]
    links = [_link(host, p, part[3]) for p, part in zip(processors[1:], parts[1:], strict=True)]
    return Engine(processors=processors, links=tuple(links))


def engine_sets(device_id: str) -> dict[str, Engine]:
    """The `ncnn` and `tflite` engine sets of a phone, d1 to d8.

    :raises UnknownName: another device.
    """
    if device_id not in DEVICES:
        raise UnknownName("device", device_id, DEVICES, "hetrl devices")
    no_index = ("matmul", *_NORMS, *_INDEXING)
    ncnn = [
        ("cpu", "fp32" if device_id in _A73 else "fp16", (), _ncnn_cpu(device_id)),
        ("gpu", "fp16", (*_NORMS, *_INDEXING), _ncnn_gpu(device_id)),
    ]
    tflite = [
        ("cpu", "fp32", (), _tflite_cpu(device_id)),
        ("gpu", "fp16", no_index, _tflite_gpu(device_id)),
    ]
    if device_id in _DSP:
        refused = no_index if _DSP[device_id].group == "htp" else (GROUPED_CONV, *no_index)
        tflite.append(("dsp", "int8", refused, _DSP[device_id]))
    if device_id in _NPU:
        tflite.append(("npu", "fp16", no_index, _NPU[device_id]))
    return {"ncnn": _engine("ncnn", ncnn), "tflite": _engine("tflite", tflite)}


def mace_dsp_set(mace: Engine, tflite: Engine) -> Engine | None:
    """The CPU of a phone's `mace` set and the DSP of its `tflite` set; None where that has none.

    Its numbers and errors are known for the CPU as in `mace`, and assumed for the DSP. No model counts as known to it.
    """
    dsp = next((p for p in tflite.processors if p.unit == "dsp"), None)
    if dsp is None:
        return None
    link = next(x for x in tflite.links if x.accelerator == dsp.id)
    cpu = msgspec.structs.replace(next(p for p in mace.processors if p.unit == "cpu"), engine=MACE_DSP)
    dsp = _borrowed(msgspec.structs.replace(dsp, engine=MACE_DSP, cost=_borrowed(dsp.cost)))
    spread = tflite.errors[Known.UNSEEN]["dsp"]
    errors = {"cpu": mace.errors[Known.UNSEEN]["cpu"], "dsp": _assumed(spread)}
    errors["split"] = max(errors.values(), key=lambda quantity: quantity.value)
    return Engine(
        processors=(cpu, dsp),
        links=(msgspec.structs.replace(_borrowed(link), host=cpu.id, accelerator=dsp.id),),
        errors={Known.UNSEEN: errors},
    )


def _borrowed(part: Part) -> Part:
    """The same with numbers that are assumed to hold for MACE."""
    numbers = {name: _assumed(value) for name, value in _fields(part).items() if isinstance(value, Quantity)}
    return msgspec.structs.replace(part, **numbers)


def _fields(part: Processor | Cost | Link) -> dict[str, object]:
    return {name: getattr(part, name) for name in part.__struct_fields__}


def _assumed(number: Quantity) -> Quantity:
    if number.source is Source.ASSUMED:
        return number
    note = f"{number.source.value} to TFLite's rows ({number.note}), assumed to hold for MACE: both run hexagon-nn"
    return Quantity(number.value, Source.ASSUMED, note)
