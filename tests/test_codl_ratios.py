"""CoDL's planner against the ratios that CoDL itself chose, operator by operator."""

from __future__ import annotations

import csv
from importlib import resources

import numpy as np

from hetrl.agents.policies.codl_rule import single_choices
from hetrl.calibration.mace import tables_of_rows
from hetrl.device_bridge.spec import load_spec
from hetrl.device_bridge.surrogate.cost_model import CostModel

SNAPDRAGONS = ("d1", "d3", "d4")
MODELS = ("yolov2", "vgg16", "posenet", "fst", "retinaface")
HEAVY_MACS = 0.3e9


def heavy(row: dict[str, str]) -> bool:
    macs = np.prod([float(row[name]) for name in ("out_h", "out_w", "out_c", "in_c")]) * float(row["kernel"]) ** 2
    return row["kind"] == "conv" and bool(macs >= HEAVY_MACS)


def test_codls_own_ratios_are_matched_within_a_tenth_for_four_of_five_heavy_convolutions() -> None:
    with (resources.files("hetrl.data") / "codl_ops.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    matched, count = 0, 0
    for device in SNAPDRAGONS:
        engine = load_spec(device).engine("mace")
        for model in MODELS:
            chosen = single_choices(CostModel(tables_of_rows(model, engine), idle_w=0.0))
            for row, share_pct in zip((r for r in rows if r["model"] == model), chosen, strict=True):
                told = row[f"{device}_gpu_ratio"]
                if told and heavy(row):
                    matched += abs(share_pct - 100 * float(told)) <= 10 + 1e-9
                    count += 1
    assert count >= 300
    assert matched >= 0.8 * count, f"{matched} of {count}"
