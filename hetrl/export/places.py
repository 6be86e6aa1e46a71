"""Small things that exporters have in common."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.spec import DeviceSpec
from hetrl.plan import Plan

MOST_CORES = 1024  # that a sidecar may name: more is a mistake, or meant badly
_PART = re.compile(r"@(\d{1,6})\.(\d{1,6})$")


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


class Places:
    """Where a plan has its operators, by the names that bundles give them.

    An operator is named by its first result, with `@SEGMENT.PART` behind it where one part of a shared segment does
    it; without that it is what joins the parts' results, and with the last part.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._segment = {node: number for number, segment in enumerate(plan.segments) for node in segment.nodes}

    def processor(self, name: str) -> str | None:
        """Of an operator, or of what was added to a part; None for names that are not the plan's."""
        number = self._segment.get(name)
        if number is not None:
            return self._plan.segments[number].parts[-1].processor
        part = _PART.search(name)
        if part is None:
            return None
        segments, number, place = self._plan.segments, int(part[1]), int(part[2])
        there = number < len(segments) and place < len(segments[number].parts)
        return segments[number].parts[place].processor if there else None

    def part(self, node: str, segment: int, processor: str) -> str:
        """The name of an operator where a processor does it, which is one of the segment's."""
        parts = self._plan.segments[segment].parts
        if len(parts) == 1:
            return node
        return f"{node}@{segment}.{[part.processor for part in parts].index(processor)}"

    def misplaced(self, processors: Mapping[str, str], vanished: Collection[str] = ()) -> str | None:
        """What is wrong with where operators are, if anything is: one is elsewhere, or nowhere.

        :param processors: by name, all of them.
        :param vanished: names of operators that are nowhere because the runtime makes nothing of them.
        """
        for name, processor in processors.items():
            planned = self.processor(name)
            if planned is not None and planned != processor:
                return f"{name!r} is not where the plan has it"
        for number, segment in enumerate(self._plan.segments):
            parts = [f"@{number}.{part}" for part in range(len(segment.parts))] if len(segment.parts) > 1 else [""]
            known = processors.keys() | set(vanished)
            there = {node: [part for part in parts if f"{node}{part}" in known] for node in segment.nodes}
            lost = next((node for node, found in there.items() if not found), None)
            if lost is not None:
                return f"{lost!r}, which the plan has on {' and '.join(segment.processors)}, is nowhere"
            idle = [part for part in parts if not any(part in found for found in there.values())]
            if idle:
                return f"the part {idle[0][1:]} of the plan is nowhere"
        return None


def machine_of(spec: DeviceSpec) -> str:
    """What tells a computer from another one: its CPU and how many cores it lets programs use."""
    cores = {core for engine in spec.engines.values() for processor in engine.processors for core in processor.cores}
    return f"{spec.soc}, {len(cores)} cores"
