"""Facts of the study's eight phones, as their makers and others state them; nothing here is fitted."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources

import msgspec

from hetrl.plan import Memory


class Cluster(msgspec.Struct, frozen=True):
    core: str
    count: int
    max_ghz: float


class Phone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One phone of `phones.json`.

    :param slow_big_ghz: clock of the slowest among the four big cores, which a static split of work waits for.
    :param coremark_per_mhz: of that core; 0 for the A73, which nobody measured.
    """

    phone: str
    soc: str
    ram_gb: float
    cpu: tuple[Cluster, ...]
    slow_big_core: str
    slow_big_ghz: float
    coremark_per_mhz: float
    gpu: str
    gpu_mhz: float
    gpu_gflops: float
    memory: str
    memory_gbps: float
    sources: dict[str, str]

    @property
    def family(self) -> str:
        """Family of its GPU: `adreno` or `mali`."""
        return "mali" if self.gpu.startswith("Mali") else "adreno"

    @property
    def friendly(self) -> Memory:
        """The memory type that its GPU likes: texture images on Adreno, buffers on Mali (CoDL, figure 2)."""
        return Memory.BUFFER if self.family == "mali" else Memory.IMAGE

    @property
    def clusters(self) -> str:
        """CPU clusters in words."""
        return " + ".join(f"{c.count} x {c.core} {c.max_ghz:g} GHz" for c in self.cpu)


@cache
def phones() -> Mapping[str, Phone]:
    """The phones by id."""
    return msgspec.json.decode((resources.files("hetrl.data") / "phones.json").read_bytes(), type=dict[str, Phone])
