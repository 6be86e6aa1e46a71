"""Rows and groups of the `tflite` engine set: CPU, GPU delegate, Hexagon through the QNN delegate, Kirin NPU.

The Kirin NPU's rows were made with Paddle-Lite on Huawei's HiAI runtime, which does all the work. nn-Meter's are the
predictions of its authors' tool, trained on measurements of TFLite 2.1; they keep their own numbers and only lend their
shape to the phones with few measured rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hetrl.calibration.roofline import GROUPED, Fit, Group, Row, family, least, predict, prior, read_csv

LAYERS = "tflite_layers.csv"
HVX, GPU_OF_HVX = "hexagon698", "adreno650"  # of the Snapdragon 865 board whose fallback was counted
GROUPS = {
    "cpu": Group(
        LAYERS,
        "cpu",
        ("sd845:1", "sd845:4", "sd855:4", "sd855_nnmeter:1"),
        prior((25.0, 25.0, 50.0, 60.0), (0.1, 0.1, 0.05, 0.02), 0.02),
    ),
    "gpu": Group(
        LAYERS,
        "gpu",
        ("adreno630", "adreno630_nnmeter", "adreno640", "adreno640_nnmeter", "adreno650"),
        prior((8.0, 8.0, 20.0, 30.0), (0.05, 0.1, 0.03, 0.02), 0.02, 0.5),
    ),
    "hvx": Group(LAYERS, "dsp", (HVX,), prior((0.5, 0.5, 2.0, 5.0), (0.03, 0.05, 0.01, 0.1), 0.005, 0.5)),
    "htp": Group(
        LAYERS,
        "dsp",
        ("hexagon770", "htp_v69"),
        prior((0.1, 0.3, 0.4, 5.0), (0.002, 0.01, 0.001, 0.002), 0.001, 0.3),
    ),
    "npu": Group(
        LAYERS,
        "npu",
        ("kirin810", "kirin990", "kirin990_5g"),
        prior((1.0, 1.0, 4.0, 5.0), (0.01, 0.1, 0.02, 0.005), 0.02, 0.5),
    ),
}


def rows(group: Group) -> list[Row]:
    """Latencies of a group; a CPU's silicon is `chip:threads`.

    Only rows whose layers all ran on the processor; int8 CPU rows are too few to fit. The least of duplicates counts:
    publications of one profile differ by runtime version, and that is the best that the silicon was seen to do.
    """
    found = []
    for r in read_csv("tflite_latencies.csv"):
        took = _layers_by_unit(r)
        whole = not sum(took.values()) or took.get(group.processor) == sum(took.values())
        silicon = f"{r['silicon']}:{r['threads']}" if group.processor == "cpu" else r["silicon"]
        if r["processor"] == group.processor and silicon in group.silicon and whole:
            if group.processor != "cpu" or r["precision"] != "int8":
                found.append(Row(silicon, r["network"], float(r["latency_ms"])))
    return least(found)


def _layers_by_unit(row: Mapping[str, str]) -> dict[str, int]:
    return {unit: int(row[f"ops_{unit}"]) for unit in ("dsp", "gpu", "cpu")}


@dataclass(frozen=True)
class Fallback:
    """A network with grouped convolutions that was given to the HVX-era DSP, which ran only `dsp_layers` of it."""

    row: Row
    dsp_layers: int
    layers: int


def fallbacks() -> Iterator[Fallback]:
    """The newest profile of each network with grouped convolutions whose layers the GPU mostly took over."""
    newest: dict[str, tuple[str, Fallback]] = {}
    for r in read_csv("tflite_latencies.csv"):
        took = _layers_by_unit(r)
        grouped = family(LAYERS, r["network"]) == GROUPED
        if r["silicon"] == HVX and grouped and took["gpu"] > took["dsp"] > 0:
            found = Fallback(Row(HVX, r["network"], float(r["latency_ms"])), took["dsp"], sum(took.values()))
            newest[r["network"]] = max(newest.get(r["network"], ("", found)), (r["note"], found), key=lambda x: x[0])
    yield from (found for _, (_, found) in sorted(newest.items()))


def fallback_ms(case: Fallback, gpu: Fit, dsp: Fit) -> float:
    """The GPU's time for the network, and one DSP call for each layer that stayed there."""
    on_gpu = predict(LAYERS, case.row.network, gpu[GPU_OF_HVX])
    return on_gpu + case.dsp_layers * dsp[HVX]["sync_ms"]
