"""Rows and groups of the `ncnn` engine set: CPU (fp16 where it has it) and Vulkan GPU."""

from __future__ import annotations

from hetrl.calibration.roofline import Group, Row, least, prior, read_csv

LAYERS = "ncnn_layers.csv"
LEFT_OUT = ("vision_transformer",)  # its work is attention, not convolutions
GROUPS = {
    "cpu": Group(
        LAYERS,
        "cpu",
        ("kirin970:1", "kirin970:4", "sd855plus:1", "sd855plus:4", "sd888:8"),
        prior((6.0, 8.0, 20.0, 30.0), (0.1, 0.05, 0.1, 0.01), 0.01),
    ),
    "gpu": Group(
        LAYERS,
        "gpu",
        ("kirin970", "sd855plus", "sd888"),
        prior((8.0, 10.0, 40.0, 40.0), (0.1, 0.1, 0.1, 0.01), 0.04, 0.5),
    ),
}


def rows(group: Group, use: str = "current") -> list[Row]:
    """Latencies of a group; a CPU's silicon is `chip:threads`.

    Left out: `historical` rows (older builds of ncnn: the kernels got up to twice as fast), int8 rows (another
    precision; under Vulkan they run on the CPU), and attention networks. The least of duplicates counts. Rows of
    `use` "check" come from other publications and are never fitted.
    """
    found = []
    for r in read_csv("ncnn_latencies.csv"):
        wanted = r["processor"] == group.processor and r["precision"] != "int8" and r["use"] == use
        if wanted and r["network"] not in LEFT_OUT:
            silicon = f"{r['silicon']}:{r['threads']}" if group.processor == "cpu" else r["silicon"]
            if silicon in group.silicon or use == "check":
                found.append(Row(silicon, r["network"], float(r["latency_ms"])))
    return least(found)
