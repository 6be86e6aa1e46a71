"""Device files of the study's eight phones from a fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from hetrl.calibration.engine_sets import MACE_DSP, engine_sets, mace_dsp_set
from hetrl.calibration.fit import MODELS, Fit
from hetrl.calibration.mace import from_d1, power_w
from hetrl.calibration.phones import phones
from hetrl.calibration.rows import cells
from hetrl.calibration.scaling import NEAREST, engine_for
from hetrl.calibration.uncertainty import mace_errors, roofline_errors
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import SCHEMA, DeviceSpec, Engine, Known
from hetrl.zoo.resolve import resolve_model

MACHINES_ONLY = frozenset({"cores", "number", "group_factors"})  # fields that no phone's file has
TABLE_1 = "the study's table 1 (arXiv 2405.01851)"


def device_spec(fit: Fit, phone: str, shifted: Mapping[str, Quantity] | None = None) -> DeviceSpec:
    """The device file of a phone.

    :param shifted: what conditions add to errors.
    """
    facts = phones()[phone]
    engines = {"mace": _mace(fit, phone)}
    engines |= {
        name: msgspec.structs.replace(engine, errors=roofline_errors(name, engine))
        for name, engine in sorted(engine_sets(phone).items())
    }
    dsp = mace_dsp_set(engines["mace"], engines["tflite"])
    if dsp is not None:
        engines[MACE_DSP] = dsp
    if shifted is not None:
        for name, engine in engines.items():
            errors = {**engine.errors, Known.SHIFTED.value: dict(shifted)}
            engines[name] = msgspec.structs.replace(engine, errors=errors)
    notes = "mace: clocks locked at their maximum, four threads on the big cores, fp32"
    if phone in NEAREST:
        origins = sorted({*NEAREST[phone].cpu, *NEAREST[phone].gpu})
        notes += f"; nobody measured it here, its numbers are scaled from {' and '.join(origins)}"
    return DeviceSpec(
        schema=SCHEMA,
        id=phone,
        phone=facts.phone,
        soc=facts.soc,
        ram_gb=Quantity(facts.ram_gb, Source.MEASURED, TABLE_1),
        idle_w=from_d1(phone, power_w()["idle_w"], "CPU alone + GPU alone - both, hetrl/data/codl_power.csv"),
        default_engine="mace",
        engines=engines,
        hardware=facts.hardware,
        notes=notes + ".",
    )


def _mace(fit: Fit, phone: str) -> Engine:
    hashes = {name: resolve_model(name).structure_hash for name in MODELS}
    own = {c.model for c in cells() if c.device == phone}
    return msgspec.structs.replace(
        engine_for(fit, phone),
        calibrated_models=tuple(hashes[m] for m in MODELS if m in own),
        seen_models=tuple(hashes[m] for m in MODELS if m not in own),
        errors=mace_errors(phone),
    )


def encode_spec(spec: DeviceSpec) -> bytes:
    """Canonical bytes of a device file; fitted numbers at five digits, which is more than they deserve."""
    return msgspec.json.format(msgspec.json.encode(_rounded(msgspec.to_builtins(spec))), indent=1) + b"\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _rounded(v) for k, v in value.items() if k not in MACHINES_ONLY or v not in (None, {}, ())}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
