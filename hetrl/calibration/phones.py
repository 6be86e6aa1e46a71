"""Facts of the study's eight phones, as their makers and others state them; nothing here is fitted."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources

import msgspec

from hetrl.device_bridge.hardware import Hardware
from hetrl.device_bridge.quantity import Quantity
from hetrl.plan import Memory


class SlowBigCore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The slowest among the four big cores, which a static split of work waits for.

    :param coremark_per_mhz: None for the A73, which nobody measured.
    """

    core: str
    max_ghz: float
    coremark_per_mhz: Quantity | None = None


class Phone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One phone of `phones.json`."""

    phone: str
    soc: str
    ram_gb: float
    slow_big_core: SlowBigCore
    hardware: Hardware

    @property
    def gpu(self) -> str:
        """Name of the GPU."""
        return self.hardware.gpu.name

    @property
    def family(self) -> str:
        """Family of its GPU: `adreno` or `mali`."""
        return "mali" if self.gpu.startswith("Mali") else "adreno"

    @property
    def friendly(self) -> Memory:
        """The memory type that its GPU likes: texture images on Adreno, buffers on Mali (CoDL, figure 2)."""
        return Memory.BUFFER if self.family == "mali" else Memory.IMAGE

    @property
    def memory_gbps(self) -> float:
        """Nominal bandwidth of main memory, 1e9 bytes per second."""
        return self.hardware.memory.bandwidth_gbps.value


@cache
def phones() -> Mapping[str, Phone]:
    """The phones by id."""
    return msgspec.json.decode((resources.files("hetrl.data") / "phones.json").read_bytes(), type=dict[str, Phone])
