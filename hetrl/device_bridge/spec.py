"""Device files: the numbers of one device, each with where it comes from."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from importlib import resources
from pathlib import Path

import msgspec

from hetrl.compression import CHANNEL_MULTIPLE, MOST_CHANNEL_MULTIPLE
from hetrl.device_bridge.hardware import Hardware
from hetrl.device_bridge.quantity import Quantity
from hetrl.errors import SpecError, UnknownName
from hetrl.plan import PROCESSOR_ID, Memory

SCHEMA = "hetrl.device/1"
MAX_PROCESSORS = 6  # of one engine set; the cost model keeps a number for every set of their memories


class Known(StrEnum):
    """How well a model is known to an engine's fit; `shifted` is what a condition adds."""

    CALIBRATED = "calibrated"  # its measurements on this device are in the fit
    SEEN = "seen"  # those on other devices are
    UNSEEN = "unseen"
    SHIFTED = "shifted"


class CpuCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="winograd_cpu", tag_field="form"):
    """Parameters of `surrogate.op_time.cpu_time_ms`."""

    ms_per_gmac: Quantity
    ms_per_mb: Quantity
    launch_ms: Quantity
    direct_factor: Quantity
    stride2_factor: Quantity
    depthwise_factor: Quantity


class GpuCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tiled_gpu", tag_field="form"):
    """Parameters of `surrogate.op_time.gpu_time_ms`.

    `unfriendly_factor` is what a 3x3 convolution's time is multiplied with in the memory type that is not
    `friendly_memory`; `unfriendly_share_1x1` is how much of the excess a 1x1 convolution sees.
    """

    ms_per_gmac: Quantity
    ms_per_mb: Quantity
    launch_ms: Quantity
    factor_1x1: Quantity
    large_kernel_factor: Quantity
    depthwise_factor: Quantity
    dense_factor: Quantity
    friendly_memory: Memory
    unfriendly_factor: Quantity
    unfriendly_share_1x1: Quantity
    slice_launch_ms: Quantity
    queue_wait_ms: Quantity


class RooflineCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="roofline", tag_field="form"):
    """Parameters of `surrogate.op_time.roofline_time_ms`: one rate per family of operators, and memory traffic.

    `plain` are convolutions with a window, `pointwise` 1x1 ones and products of matrices, `grouped` and `depthwise`
    convolutions in groups. `dense_ms_per_mb` prices the weights of dense layers, `unfold_ms_per_mb` the unfolded input
    of `plain` convolutions (every element once for each place of the window), `spill_ms_per_mb` what an operator's
    activations have beyond `SPILL_ABOVE_MB`, on top of `ms_per_mb`, which prices all other traffic; all at four bytes
    per element whatever the engine's precision. Starting a run of operators on the processor is the link's `sync_ms`;
    `launch_ms` is paid by each operator.
    """

    plain_ms_per_gmac: Quantity
    pointwise_ms_per_gmac: Quantity
    grouped_ms_per_gmac: Quantity
    depthwise_ms_per_gmac: Quantity
    ms_per_mb: Quantity
    dense_ms_per_mb: Quantity
    unfold_ms_per_mb: Quantity
    spill_ms_per_mb: Quantity
    launch_ms: Quantity


Cost = CpuCost | GpuCost | RooflineCost


class Processor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One (unit, engine, precision).

    :param memory: memory types to choose from; empty for host memory.
    :param unsupported: operator kinds or ONNX operator types that fall back to the CPU.
    :param active_w: power on top of the device's `idle_w` while it works.
    :param cores: the CPU cores that it works on, where hetrl itself chooses them; processors that share cores never
        work side by side.
    :param number: which of its engine's devices it is, such as the first Vulkan device.
    """

    unit: str
    engine: str
    precision: str
    memory: tuple[Memory, ...] = ()
    unsupported: tuple[str, ...] = ()
    cost: Cost
    active_w: Quantity
    cores: tuple[int, ...] = ()
    number: int | None = None

    def __post_init__(self) -> None:
        if min(self.cores, default=0) < 0 or len(set(self.cores)) != len(self.cores):
            raise ValueError(f"cores {list(self.cores)} must be numbers from 0, each once")
        if not PROCESSOR_ID.fullmatch(self.id):
            raise ValueError(f"{self.id!r} is not of the form unit/engine/precision, in small letters")

    @property
    def id(self) -> str:
        return f"{self.unit}/{self.engine}/{self.precision}"

    @property
    def is_cpu(self) -> bool:
        """Whether it is CPU cores: all of them (`cpu`) or some (`cpu0`, `cpu1`, ...)."""
        return self.unit.startswith("cpu")

    def shares_cores(self, other: Processor) -> bool:
        """Whether the two cannot work side by side; a processor does with itself."""
        return self.id == other.id or bool(set(self.cores) & set(other.cores))


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Data sharing between host memory and an accelerator's, in ms and ms per 1e6 fp32 elements.

    `contention` is the share by which two processors that work side by side slow each other down; `splits` whether
    the engine can share one operator between them at all.
    """

    host: str
    accelerator: str
    map_ms: Quantity
    map_ms_per_melem: Quantity
    sync_ms: Quantity
    image_ms_per_melem: Quantity
    contention: Quantity
    splits: bool = True


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A set of processors that plans may use together: those of one runtime, or of several that hetrl itself drives.

    :param group_factors: model's structure hash -> processor id -> measured over predicted time of each fusion group.
    :param calibrated_models: structure hashes of the models whose measurements are in this engine's fit.
    :param seen_models: the same of models that were measured on other devices only.
    :param errors: by how well a model is known (`Known`) and by plan class (`surrogate.intervals`): 90 % of
        |ln(measured / predicted)| are below this. `shifted` comes on top under any condition but a cold device's.
    """

    processors: tuple[Processor, ...]
    links: tuple[Link, ...]
    calibrated_models: tuple[str, ...] = ()
    seen_models: tuple[str, ...] = ()
    errors: dict[str, dict[str, Quantity]] = {}
    group_factors: dict[str, dict[str, tuple[float, ...]]] = {}

    @property
    def engines(self) -> tuple[str, ...]:
        """The runtimes whose processors these are, sorted."""
        return tuple(sorted({p.engine for p in self.processors}))

    @property
    def on_machine(self) -> bool:
        """Whether it is of a machine on which hetrl itself chooses the cores, and not of a phone."""
        return any(p.cores for p in self.processors)

    @property
    def host(self) -> int:
        """Number of the processor whose memory all others reach: the CPU that the links name."""
        ids = [p.id for p in self.processors]
        return ids.index(self.links[0].host) if self.links else [p.is_cpu for p in self.processors].index(True)


class DeviceSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One device file (`hetrl.device/1`); predictions need its engine sets, `hardware` is for people and rules.

    :param channel_multiple: numbers of channels that its processors work on at once, so that pruning leaves multiples.
    """

    schema: str
    id: str
    phone: str
    soc: str
    ram_gb: Quantity
    idle_w: Quantity
    default_engine: str
    engines: dict[str, Engine]
    hardware: Hardware | None = None
    notes: str = ""
    channel_multiple: int = CHANNEL_MULTIPLE

    def __post_init__(self) -> None:
        if not 1 <= self.channel_multiple <= MOST_CHANNEL_MULTIPLE:
            raise ValueError(f"channel_multiple is {self.channel_multiple}, not in 1 to {MOST_CHANNEL_MULTIPLE}")
        if self.schema != SCHEMA:
            raise ValueError(f"schema is {self.schema!r}, not {SCHEMA!r}")
        if not self.id:
            raise ValueError("id is empty")
        if self.default_engine not in self.engines:
            raise ValueError(f"default_engine {self.default_engine!r} is not among the engines {sorted(self.engines)}")
        for name, engine in self.engines.items():
            ids = [p.id for p in engine.processors]
            if not 1 <= len(ids) <= MAX_PROCESSORS or len(set(ids)) != len(ids):
                raise ValueError(f"engine {name!r} must name 1 to {MAX_PROCESSORS} processors, each once")
            if name in engine.engines and len(engine.engines) > 1:
                raise ValueError(f"engine {name!r} holds a processor of another engine")
            if name not in engine.engines and len(engine.engines) == 1:
                raise ValueError(f"engine {name!r} holds processors of {engine.engines[0]!r}: name it so")
            if not any(p.unit == "cpu" for p in engine.processors):
                raise ValueError(f"engine {name!r} has no cpu; operators would have nowhere to fall back to")
            if not set(engine.errors) <= set(Known):
                raise ValueError(f"engine {name!r} has errors of {sorted(set(engine.errors) - set(Known))}")
            for link in engine.links:
                if link.host not in ids or link.accelerator not in ids:
                    raise ValueError(
                        f"engine {name!r} links {link.host!r} and {link.accelerator!r}, not both are its own"
                    )
            host = engine.processors[engine.host].id
            if not engine.processors[engine.host].is_cpu:
                raise ValueError(f"engine {name!r} links to {host!r}, which is no cpu")
            linked = [link.accelerator for link in engine.links if link.host == host]
            if len(linked) != len(engine.links) or sorted(linked) != sorted(set(ids) - {host}):
                raise ValueError(f"engine {name!r} must link {host!r} to each of its other processors, once")

    def engine(self, name: str | None = None) -> Engine:
        """The engine set of that name, or the default one.

        :raises UnknownName: the device has none of that name.
        """
        name = self.default_engine if name is None else name
        if name not in self.engines:
            raise UnknownName("engine", name, self.engines, "hetrl devices")
        return self.engines[name]


def decode_spec(data: bytes, where: str) -> DeviceSpec:
    """Read a device file's bytes, JSON or (by the ending of `where`) TOML.

    :raises SpecError: naming the field.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")  # some editors write a byte-order mark
    if not data.strip():
        raise SpecError(f"{where} is no device file: it is empty", "`hetrl devices init FILE.toml` writes one")
    decode = msgspec.toml.decode if where.endswith(".toml") else msgspec.json.decode
    try:
        return decode(data, type=DeviceSpec)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"{where} is no device file: {error}", "compare it with `hetrl devices --json`") from None


@cache
def builtin_names() -> tuple[str, ...]:
    """Ids of the devices that hetrl ships."""
    folder = resources.files("hetrl.device_bridge") / "specs"
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")))


def load_spec(name_or_path: str) -> DeviceSpec:
    """The spec of a built-in device, or of a device file.

    :raises UnknownName: neither a name nor a file.
    :raises SpecError: the file cannot be read, or is malformed.
    """
    if name_or_path in builtin_names():
        file = resources.files("hetrl.device_bridge") / "specs" / f"{name_or_path}.json"
        return decode_spec(file.read_bytes(), name_or_path)
    path = Path(name_or_path)
    if path.suffix not in (".json", ".toml") and "/" not in name_or_path and not path.exists():
        raise UnknownName("device", name_or_path, builtin_names(), "hetrl devices")
    try:
        return decode_spec(path.read_bytes(), name_or_path)
    except OSError as error:
        raise SpecError(
            f"{name_or_path} cannot be read ({error.strerror})", "`hetrl devices` lists the built-in ones"
        ) from None
