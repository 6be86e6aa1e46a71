"""What a phone is made of: facts that a device file keeps beside the fitted numbers of its engine sets."""

from __future__ import annotations

import msgspec

from hetrl.device_bridge.quantity import Quantity, Source


class Series(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers in a row with one source, such as the steps of a clock, ascending."""

    values: tuple[float, ...]
    source: Source
    note: str = ""

    def __post_init__(self) -> None:
        if not self.values or min(self.values) <= 0:
            raise ValueError("a series needs numbers above 0")


class CpuCluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Cores of one kind.

    :param steps_ghz: the clocks that they can be set to.
    :param core_w: power of one of them, fully busy, at each of these clocks.
    """

    core: str
    count: int
    max_ghz: Quantity
    steps_ghz: Series | None = None
    core_w: Series | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("a cluster has at least one core")
        if self.steps_ghz is not None and list(self.steps_ghz.values) != sorted(set(self.steps_ghz.values)):
            raise ValueError("steps_ghz must ascend")
        if self.core_w is not None:
            steps = self.steps_ghz.values if self.steps_ghz else ()
            if len(self.core_w.values) != len(steps):
                raise ValueError("core_w needs one number for each of steps_ghz")


class Gpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The GPU; `peak_gflops` is nominal fp32 arithmetic at `max_mhz`."""

    name: str
    max_mhz: Quantity
    peak_gflops: Quantity
    steps_mhz: Series | None = None


class Accelerator(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A DSP or NPU.

    :param unit: `dsp` or `npu`.
    :param peak_tops: nominal int8 arithmetic, None where its maker never said.
    :param note: what software can reach it.
    """

    unit: str
    name: str
    peak_tops: Quantity | None = None
    note: str = ""


class MemoryFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Main memory, shared by all processors."""

    name: str
    bandwidth_gbps: Quantity


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One phone's parts, fastest CPU cluster first."""

    cpu: tuple[CpuCluster, ...]
    gpu: Gpu
    accelerators: tuple[Accelerator, ...] = ()
    memory: MemoryFacts
