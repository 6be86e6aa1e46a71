"""Small things that exporters have in common."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.spec import DeviceSpec
from hetrl.plan import Plan

_PART = re.compile(r"@(\d{1,6})\.\d+$")


def copy_weights(store: BlobStore, names: Iterable[str], folder: Path) -> None:
    """Copy blobs, each once: a bundle must not change with a cache."""
    for name in names:
        if not (folder / name).exists():
            shutil.copyfile(store.path(name), folder / name)


def share_of(plan: Plan, segment: int, processor: str) -> int:
    """Percent of a segment that a processor does."""
    return next(part.share_pct for part in plan.segments[segment].parts if part.processor == processor)


def cores_of(spec: DeviceSpec | None, processor: str) -> tuple[int, ...]:
    """Of a computer's processor; empty for a phone's."""
    known = [] if spec is None else [p for engine in spec.engines.values() for p in engine.processors]
    return next((p.cores for p in known if p.id == processor), ())


def misplaced(plan: Plan, processors: Mapping[str, str]) -> list[str]:
    """Operators that are elsewhere than in the plan.

    :param processors: by operator, named by its first result, with `@SEGMENT.PART` behind it where it is a part's;
        those that the plan does not know are not looked at.
    """
    segment_of = {node: number for number, segment in enumerate(plan.segments) for node in segment.nodes}
    found = []
    for name, processor in processors.items():
        part = _PART.search(name)
        number = int(part[1]) if part and name not in segment_of else segment_of.get(name)
        if number is None:
            continue
        if number >= len(plan.segments) or processor not in plan.segments[number].processors:
            found.append(name)
    return found


def machine_of(spec: DeviceSpec) -> str:
    """What tells a computer from another one: its CPU and how many cores it lets programs use."""
    cores = {core for engine in spec.engines.values() for processor in engine.processors for core in processor.cores}
    return f"{spec.soc}, {len(cores)} cores"
