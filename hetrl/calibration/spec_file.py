"""A fit as a device file."""

from __future__ import annotations

from typing import Any

import msgspec

from hetrl.calibration.fit import Fit, engine_of, fitted, power_w
from hetrl.device_bridge.spec import SCHEMA, DeviceSpec, Quantity, Source
from hetrl.zoo.resolve import resolve_model

CALIBRATED_ZOO_MODELS = ("vgg16",)  # zoo networks that are the measured ones, operator by operator


def d1_spec(fit: Fit) -> DeviceSpec:
    """Xiaomi 9 (Snapdragon 855), the study's d1, with its `mace` engine set."""
    hashes = tuple(resolve_model(name, None).structure_hash for name in CALIBRATED_ZOO_MODELS)
    engine = msgspec.structs.replace(engine_of(fit, "d1"), calibrated_models=hashes)
    return DeviceSpec(
        schema=SCHEMA,
        id="d1",
        phone="Xiaomi 9",
        soc="Snapdragon 855",
        ram_gb=Quantity(8.0, Source.MEASURED, "the study's table 1 (arXiv 2405.01851)"),
        idle_w=fitted(power_w()["idle_w"], "CPU alone + GPU alone - both, hetrl/data/codl_power.csv"),
        default_engine="mace",
        engines={"mace": engine},
        notes="CPU and GPU clocks locked at their maximum (CoDL); four threads on the big cores; fp32.",
    )


def encode_spec(spec: DeviceSpec) -> bytes:
    """Canonical bytes of a device file; fitted numbers at five digits, which is more than they deserve."""
    return msgspec.json.format(msgspec.json.encode(_rounded(msgspec.to_builtins(spec))), indent=1) + b"\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
