"""Small things that exporters have in common."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.spec import DeviceSpec
from hetrl.plan import Plan


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
