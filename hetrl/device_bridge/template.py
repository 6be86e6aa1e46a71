"""A commented device file to start from."""

from __future__ import annotations

import json

import msgspec

from hetrl.device_bridge.plausibility import MEANINGS
from hetrl.device_bridge.quantity import Quantity
from hetrl.device_bridge.spec import load_spec

HEADER = """\
# A device file of hetrl: `hetrl devices check THIS_FILE`, then `hetrl train --device THIS_FILE --model ...`.
#
# Every number is {value, source, note}. The source is measured (on this device or its silicon, or stated by its maker),
# fitted (to its measurements), scaled (from another device's, by a rule that the note gives) or assumed. Predictions
# for a file without an `errors` table have no interval. The values below are those of a Xiaomi 9
# (Snapdragon 855) and are only assumed for any other phone: replace what you know, and leave the rest.
"""


def template_toml(source_device: str = "d1", engine: str = "mace") -> str:
    """TOML text of a device file with every number of an existing one as an assumption, and what each means."""
    spec = load_spec(source_device)
    lines = [HEADER, f"schema = {json.dumps(spec.schema)}", 'id = "my-phone"']
    lines += ['phone = "My Phone"', 'soc = "its system on a chip"', f'default_engine = "{engine}"']
    lines += [_number("ram_gb", spec.ram_gb), _number("idle_w", spec.idle_w), ""]
    for processor in spec.engine(engine).processors:
        lines += [f"[[engines.{engine}.processors]]", f'unit = "{processor.unit}"', f'engine = "{engine}"']
        lines += [f'precision = "{processor.precision}"']
        if processor.memory:
            lines.append(f"memory = {json.dumps([m.value for m in processor.memory])}")
        if processor.unsupported:
            lines.append(f"unsupported = {json.dumps(list(processor.unsupported))} # fall back to the CPU")
        lines += [_number("active_w", processor.active_w), "", f"[engines.{engine}.processors.cost]"]
        lines += [*_fields(processor.cost), ""]
    for link in spec.engine(engine).links:
        lines += [f"[[engines.{engine}.links]]", *_fields(link), ""]
    return "\n".join(lines)


def _fields(thing: msgspec.Struct) -> list[str]:
    lines = []
    tag = thing.__struct_config__.tag
    if tag is not None:
        lines.append(f"{thing.__struct_config__.tag_field} = {json.dumps(tag)}")
    for name in thing.__struct_fields__:
        value = getattr(thing, name)
        lines.append(_number(name, value) if isinstance(value, Quantity) else f"{name} = {json.dumps(value)}")
    return lines


def _number(name: str, quantity: Quantity) -> str:
    meaning = MEANINGS.get(name)
    comment = f" # {meaning.text}; {meaning.low:g} to {meaning.high:g}" if meaning else ""
    return f'{name} = {{ value = {quantity.value!r}, source = "assumed", note = "as on a Xiaomi 9" }}{comment}'
