"""Refused operators in a copy of a device file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from hetrl.device_bridge.spec import DeviceSpec
from hetrl.errors import UsageError

UNITS = ("npu", "dsp")


def with_unsupported(
    spec: DeviceSpec, refused: Iterable[str], note: str, engine: str | None = None
) -> tuple[DeviceSpec, str]:
    """The device with more operator types in its NPU's (or DSP's) `unsupported`, and that processor's id.

    What the file refuses already stays refused: another model, or a chip before the HTP, may have been the reason.

    :param note: where the refusals come from; it is added to the device's notes.
    :param engine: the engine set to change; None: the first that has such a processor.
    :raises UsageError: no engine set has one.
    :raises UnknownName: there is no such engine set.
    """
    names = list(spec.engines) if engine is None else [engine]
    for name in names:
        here = spec.engine(name)
        chosen = next((p for unit in UNITS for p in here.processors if p.unit == unit), None)
        if chosen is None:
            continue
        unsupported = tuple(dict.fromkeys([*chosen.unsupported, *refused]))
        changed = msgspec.structs.replace(chosen, unsupported=unsupported)
        processors = tuple(changed if p is chosen else p for p in here.processors)
        engines = spec.engines | {name: msgspec.structs.replace(here, processors=processors)}
        notes = f"{spec.notes} {chosen.id}: {note}".strip()
        return msgspec.structs.replace(spec, engines=engines, notes=notes), chosen.id
    where = f"engine set {engine!r} of {spec.id}" if engine else spec.id
    raise UsageError(f"{where} has no NPU or DSP", "`hetrl devices` lists the processors")


def check_out(path: Path) -> None:
    """Refuse a name that is taken or is no JSON file, before anything is measured.

    :raises UsageError: either.
    """
    if path.suffix != ".json":
        raise UsageError(f"{path} does not end in .json", f"--out {path.with_suffix('.json')}")
    if path.exists():
        raise UsageError(f"{path} exists already", "give another name")


def write(spec: DeviceSpec, path: Path) -> None:
    """Write a device file; an existing one is never overwritten.

    :raises UsageError: the file exists.
    """
    try:
        with path.open("xb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(spec), indent=1) + b"\n")
    except FileExistsError:
        raise UsageError(f"{path} exists already", "give another name") from None
