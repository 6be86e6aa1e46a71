"""The measured rows that hetrl ships, as values."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from hetrl.device_bridge.surrogate.workload import Read, WorkItem, Workload
from hetrl.graph import Geometry, InputRole, OpKind

_KINDS = {"conv": OpKind.CONV, "pool": OpKind.POOL, "fc": OpKind.GEMM}


@dataclass(frozen=True)
class Cell:
    """One whole-model latency: `strategy` is a hand policy's id, `mace_gpu` or `ideal`."""

    device: str
    model: str
    strategy: str
    latency_ms: float


@dataclass(frozen=True)
class Ratio:
    """The GPU's share (0 to 1) that CoDL's own planner chose for an operator of its list."""

    device: str
    model: str
    position: int
    gpu_ratio: float


def _read(name: str) -> Iterator[dict[str, str]]:
    with (resources.files("hetrl.data") / name).open(encoding="utf-8") as file:
        yield from csv.DictReader(file)


@cache
def cells() -> tuple[Cell, ...]:
    """Latencies of `codl_latencies.csv`."""
    return tuple(
        Cell(r["device"], r["model"], r["strategy"], float(r["latency_ms"])) for r in _read("codl_latencies.csv")
    )


@cache
def ratios() -> tuple[Ratio, ...]:
    """Where CoDL split an operator (ratios strictly between 0 and 1)."""
    found = []
    for row in _read("codl_ops.csv"):
        for column, value in row.items():
            if column.endswith("_gpu_ratio") and value and 0 < float(value) < 1:
                device = column.removesuffix("_gpu_ratio")
                found.append(Ratio(device, row["model"], int(row["op_index"]), float(value)))
    return tuple(found)


@cache
def sharing_points() -> tuple[tuple[str, float, float], ...]:
    """(transform | map | presync, 1e6 elements, ms)."""
    return tuple(
        (r["kind"], float(r["elements"]) / 1e6, float(r["latency_ms"])) for r in _read("codl_sharing_points.csv")
    )


@cache
def powers_w() -> tuple[tuple[str, float], ...]:
    """(system, W) on d1."""
    return tuple((r["system"], float(r["value"])) for r in _read("codl_power.csv") if r["quantity"] == "power_W")


@cache
def workload_of_rows(model: str) -> Workload:
    """The measured operators of one network as a chain.

    The rows are kept as they are, also where one operator's output is not the next one's input (the lists leave out
    concatenations and branches): each operator reads a tensor of its own input's size.
    """
    items: list[WorkItem] = []
    elements: list[int] = []
    for row in _read("codl_ops.csv"):
        if row["model"] != model:
            continue
        item, read = _item(row, len(items))
        items.append(item)
        elements.append(read)
    last = items[-1].geometry
    elements.append(last.out_h * last.out_w * last.out_channels)
    return Workload(tuple(items), tuple(elements), inputs=(0,), outputs=(len(items),))


def _item(row: dict[str, str], position: int) -> tuple[WorkItem, int]:
    """The work item, and the elements of its input."""
    kind = _KINDS[row["kind"]]
    in_h, in_w, in_c, out_c = (int(row[c]) for c in ("in_h_padded", "in_w_padded", "in_c", "out_c"))
    kernel, stride = int(row["kernel"]), int(row["stride"])
    read = in_h * in_w * in_c
    if kind is OpKind.GEMM:
        geometry = Geometry(kind=kind, in_channels=read, out_channels=out_c)
    else:
        geometry = Geometry(
            kind=kind,
            in_channels=in_c,
            in_h=in_h,
            in_w=in_w,
            out_channels=out_c,
            out_h=int(row["out_h"]),
            out_w=int(row["out_w"]),
            kernel_h=kernel,
            kernel_w=kernel,
            stride_h=stride,
            stride_w=stride,
        )
    weights = {OpKind.CONV: in_c * out_c * kernel * kernel, OpKind.GEMM: read * out_c, OpKind.POOL: 0}[kind]
    item = WorkItem(
        geometry=geometry,
        reads=(Read(position, InputRole.WHOLE if kind is OpKind.GEMM else InputRole.WINDOW),),
        writes=(position + 1,),
        weight_elements=weights,
        splits_height=kind is not OpKind.GEMM and geometry.out_h > 1,
        splits_channels=True,
        op_types=frozenset(),
        group=position,
    )
    return item, read
