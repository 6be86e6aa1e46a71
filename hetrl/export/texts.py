"""Documents of bundles, and what formats have in common that describe a plan without holding its model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from hetrl.device_bridge.spec import DeviceSpec
from hetrl.export.base import Limit, unit_of
from hetrl.export.bundle import Bundle, Refused
from hetrl.export.places import cores_of
from hetrl.plan import Plan, Segment

PHONE_THREADS = 4  # most phones have four big cores
_Document = TypeVar("_Document")


def write_json(path: Path, document: object) -> None:
    """Canonical bytes: the same document, the same bytes."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


def read_json(bundle: Bundle, name: str, kind: type[_Document]) -> _Document:
    """:raises Refused: the file is missing, or none of that kind."""
    try:
        return msgspec.json.decode((bundle.folder / name).read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"{name} cannot be read: {error}", "export the plan again") from None


def read_text(bundle: Bundle, name: str) -> str:
    """:raises Refused: the file is missing, or no text."""
    try:
        return (bundle.folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{name} cannot be read: {error}", "export the plan again") from None


def segment_of(plan: Plan) -> dict[str, Segment]:
    """Where each node is placed."""
    return {node: segment for segment in plan.segments for node in segment.nodes}


def threads(spec: DeviceSpec | None, processors: Iterable[str]) -> int:
    """Of the CPU: a computer's processor has its cores, a phone its big ones, which are all but the slowest cluster."""
    cores = {core for name in processors for core in cores_of(spec, name)}
    if cores or spec is None or spec.hardware is None:
        return len(cores) or PHONE_THREADS
    clusters = [cluster.count for cluster in spec.hardware.cpu]
    return sum(clusters[:-1]) or sum(clusters)


def one_each(plan: Plan) -> Iterator[Limit]:
    """Processors that are too many for a format that knows one of each kind."""
    kinds: dict[str, list[str]] = {}
    for name in plan.processors:
        kinds.setdefault(unit_of(name), []).append(name)
    for kind, names in kinds.items():
        if len(names) > 1:
            yield Limit("segments", f"there is one {kind}, and the plan uses {' and '.join(names)}")


def limits(reasons: Mapping[str, list[str]]) -> tuple[Limit, ...]:
    """One limit for each reason, with the nodes that it holds for."""
    return tuple(
        Limit("segments", f"{nodes[0]!r}{f' and {len(nodes) - 1} more' if len(nodes) > 1 else ''}: {reason}")
        for reason, nodes in reasons.items()
    )
