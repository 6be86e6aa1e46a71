"""What numbers of a device file mean, and what is plausible for a phone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import DeviceSpec


class Meaning(msgspec.Struct, frozen=True):
    """`low` and `high` bound what phones of the last ten years have; `text` says what the number is."""

    low: float
    high: float
    text: str


class Finding(msgspec.Struct, frozen=True):
    """Something to look at in a device file."""

    field: str
    problem: str


MEANINGS = {
    "ram_gb": Meaning(1, 64, "memory of the device, GB"),
    "max_ghz": Meaning(0.3, 5, "highest clock of a CPU cluster, GHz"),
    "max_mhz": Meaning(100, 3000, "highest clock of the GPU, MHz"),
    "peak_gflops": Meaning(10, 10000, "nominal fp32 arithmetic of the GPU, 1e9 operations a second"),
    "peak_tops": Meaning(0.1, 200, "nominal int8 arithmetic of an accelerator, 1e12 operations a second"),
    "bandwidth_gbps": Meaning(2, 200, "nominal bandwidth of main memory, 1e9 bytes a second"),
    "idle_w": Meaning(0.05, 5, "power while nothing runs, W"),
    "active_w": Meaning(0.1, 20, "power on top of idle while this processor works, W"),
    "ms_per_gmac": Meaning(0.2, 300, "ms per 1e9 multiply-accumulates"),
    "plain_ms_per_gmac": Meaning(0.02, 300, "ms per 1e9 multiply-accumulates of windowed convolutions"),
    "pointwise_ms_per_gmac": Meaning(0.02, 300, "ms per 1e9 multiply-accumulates of 1x1 convolutions and products"),
    "grouped_ms_per_gmac": Meaning(0.02, 1000, "ms per 1e9 multiply-accumulates of grouped convolutions"),
    "depthwise_ms_per_gmac": Meaning(0.02, 3000, "ms per 1e9 multiply-accumulates of depthwise convolutions"),
    "ms_per_mb": Meaning(0.0005, 3, "ms per 1e6 bytes that are read or written"),
    "dense_ms_per_mb": Meaning(0.0005, 3, "ms per 1e6 bytes of weights of dense layers"),
    "unfold_ms_per_mb": Meaning(0.00005, 10, "ms per 1e6 bytes of windowed convolutions' unfolded input"),
    "spill_ms_per_mb": Meaning(0, 10, "ms per 1e6 bytes of an operator's activations beyond a cache, on top"),
    "launch_ms": Meaning(0, 5, "ms that every operator costs"),
    "direct_factor": Meaning(0.3, 20, "how much slower direct convolutions are than Winograd or GEMM work"),
    "stride2_factor": Meaning(0.3, 20, "the same for 3x3 convolutions of stride 2"),
    "depthwise_factor": Meaning(0.3, 50, "the same for depthwise convolutions"),
    "factor_1x1": Meaning(0.2, 5, "how much slower 1x1 convolutions are than 3x3, per multiply-accumulate"),
    "large_kernel_factor": Meaning(0.2, 10, "the same for kernels of 7x7 and more"),
    "dense_factor": Meaning(0.2, 10, "how much slower dense weights are read than activations"),
    "unfriendly_factor": Meaning(1, 20, "how much slower convolutions are in the other memory type"),
    "unfriendly_share_1x1": Meaning(0, 1, "share of that excess that 1x1 convolutions see"),
    "slice_launch_ms": Meaning(0, 1, "ms per further slice of a kernel"),
    "queue_wait_ms": Meaning(0, 5, "ms to wait for an empty queue"),
    "map_ms": Meaning(0, 20, "ms to map a tensor for the host"),
    "map_ms_per_melem": Meaning(0, 10, "ms per 1e6 elements to map"),
    "sync_ms": Meaning(0, 20, "ms that host and accelerator wait for each other"),
    "image_ms_per_melem": Meaning(0, 10, "ms per 1e6 elements between buffer and image"),
    "contention": Meaning(0, 1, "share by which two processors side by side slow each other down"),
    "errors": Meaning(0.01, 2, "90 % of |ln(measured / predicted)| are below this"),
}


def quantities(spec: DeviceSpec) -> Iterator[tuple[str, str, Quantity]]:
    """(path, field, quantity) of every number in a device file; all numbers of a table are of the table's field."""
    yield from _walk("", "", spec)


def _walk(path: str, field: str, thing: Any) -> Iterator[tuple[str, str, Quantity]]:
    if isinstance(thing, Quantity):
        yield path, field, thing
    elif isinstance(thing, msgspec.Struct):
        for name in thing.__struct_fields__:
            yield from _walk(f"{path}.{name}" if path else name, name, getattr(thing, name))
    elif isinstance(thing, dict):
        for name, part in thing.items():
            yield from _walk(f"{path}.{name}", field, part)
    elif isinstance(thing, tuple):
        for index, part in enumerate(thing):
            yield from _walk(f"{path}[{index}]", field, part)


def check_spec(spec: DeviceSpec) -> tuple[Finding, ...]:
    """What is implausible or missing; empty for a device file that looks right."""
    findings = []
    sources: Counter[Source] = Counter()
    for path, field, quantity in quantities(spec):
        sources[quantity.source] += 1
        meaning = MEANINGS.get(field)
        if meaning is not None and not meaning.low <= quantity.value <= meaning.high:
            findings.append(
                Finding(path, f"{quantity.value:g} is not in {meaning.low:g} to {meaning.high:g} ({meaning.text})")
            )
        if quantity.source in (Source.MEASURED, Source.FITTED) and not quantity.note:
            findings.append(Finding(path, f"is {quantity.source.value}, but no note says by whom or to what"))
    if not sources[Source.MEASURED] + sources[Source.FITTED]:
        findings.append(Finding("engines", "no number is measured or fitted: predictions will be guesses"))
    for name, engine in spec.engines.items():
        if len(engine.processors) == 1:
            findings.append(Finding(f"engines.{name}.processors", "there is one processor: nothing to distribute"))
    return tuple(findings)
