"""What a runner says of its machine as a device file: which processors there are, and a guess at how fast.

Processors that share cores never work side by side. So all cores are one processor for each engine, and each half of
them is one more for ONNX Runtime: between these two operators are shared.
"""

from __future__ import annotations

import msgspec

from hetrl.compression import CHANNEL_MULTIPLE
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.runner.protocol import Hello
from hetrl.device_bridge.spec import SCHEMA, DeviceSpec, Engine, Link, Processor, RooflineCost
from hetrl.errors import DeviceFailed

HOST = "host"  # the engine set of everything
ORT, OPENVINO, NCNN = "onnxruntime", "openvino", "ncnn"
BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})  # of x86 and Arm CPUs that calculate in it
VECTOR_FLOATS = (("avx512f", 16), ("avx2", 8))
GUESS = "as on one AVX-512 core at 2.5 GHz, over the cores; `hetrl calibrate` measures it"
# ms per 1e9 multiply-accumulates on one core: plain, pointwise, grouped, depthwise convolutions.
CORE_MS_PER_GMAC = (20.0, 25.0, 60.0, 150.0)
MS_PER_MB, LAUNCH_MS, SYNC_MS = 0.2, 0.01, 0.2
CORE_W, IDLE_W = 5.0, 5.0


def machine_spec(hello: Hello, device_id: str) -> DeviceSpec:
    """The device file of a machine that nobody has calibrated yet; its numbers are assumed.

    :raises DeviceFailed: none of the engines is there.
    """
    there = {engine.name: engine for engine in hello.engines if engine.version is not None}
    if not there:
        reasons = "; ".join(f"{engine.name}: {engine.reason}" for engine in hello.engines)
        raise DeviceFailed(f"{device_id} has no engine that runs models ({reasons})", "pip install 'hetrl[host]'")
    cores = hello.cores
    whole = [_processor("cpu", name, "fp32", cores) for name in (ORT, OPENVINO, NCNN) if name in there]
    halves = []
    if ORT in there and len(cores) > 1:
        middle = len(cores) // 2
        halves = [_processor(f"cpu{i}", ORT, "fp32", c) for i, c in enumerate((cores[:middle], cores[middle:]))]
    low = [_processor("cpu", OPENVINO, "bf16", cores)] if OPENVINO in there and _has_bf16(hello) else []
    gpus = [
        _processor(f"gpu{number}" if number else "gpu", NCNN, "fp32", _borrowed(name, cores), number)
        for number, name in enumerate(there[NCNN].devices if NCNN in there else ())
    ]
    sets = {HOST: [*halves, *whole, *low], ORT: [*halves, *whole[:1]] if ORT in there else []}
    sets[OPENVINO] = [p for p in (*whole, *low) if p.engine == OPENVINO]
    sets[NCNN] = [p for p in (*whole, *gpus) if p.engine == NCNN]
    if len({p.engine for p in sets[HOST]}) == 1:
        del sets[HOST]  # its only engine has a set of its own
    engines = {name: Engine(processors=tuple(found), links=_links(found)) for name, found in sets.items() if found}
    return DeviceSpec(
        schema=SCHEMA,
        id=device_id,
        phone=hello.platform,
        soc=hello.cpu_model,
        ram_gb=Quantity((hello.memory_mb or 1000.0) / 1000, Source.MEASURED, "as the system says"),
        idle_w=Quantity(IDLE_W, Source.ASSUMED),
        default_engine=HOST if HOST in engines else next(iter(engines)),
        engines=engines,
        channel_multiple=_channel_multiple(hello),
    )


def refreshed(known: DeviceSpec, now: DeviceSpec) -> DeviceSpec:
    """A calibrated device file, if it is still of the machine as it is now; else the latter."""
    same = {name: [(p.id, p.cores, p.number) for p in engine.processors] for name, engine in known.engines.items()}
    found = {name: [(p.id, p.cores, p.number) for p in engine.processors] for name, engine in now.engines.items()}
    if same != found or known.soc != now.soc:
        return now
    return msgspec.structs.replace(known, id=now.id, channel_multiple=now.channel_multiple)


def _channel_multiple(hello: Hello) -> int:
    """32-bit floats in a vector register, which engines block channels by."""
    for flag, count in VECTOR_FLOATS:
        if flag in hello.cpu_flags:
            return count
    return CHANNEL_MULTIPLE


def _has_bf16(hello: Hello) -> bool:
    return not BF16_FLAGS.isdisjoint(hello.cpu_flags)


def _borrowed(name: str, cores: tuple[int, ...]) -> tuple[int, ...]:
    """The cores that a Vulkan device works on: all where it is a program on the CPU."""
    return cores if "llvmpipe" in name.lower() or "swiftshader" in name.lower() else ()


def _processor(unit: str, engine: str, precision: str, cores: tuple[int, ...], number: int | None = None) -> Processor:
    scale = max(1, len(cores))
    plain, pointwise, grouped, depthwise = (_guess(ms / scale) for ms in CORE_MS_PER_GMAC)
    traffic = _guess(MS_PER_MB / scale)
    cost = RooflineCost(
        plain_ms_per_gmac=plain,
        pointwise_ms_per_gmac=pointwise,
        grouped_ms_per_gmac=grouped,
        depthwise_ms_per_gmac=depthwise,
        ms_per_mb=traffic,
        dense_ms_per_mb=traffic,
        unfold_ms_per_mb=_guess(0.0),
        spill_ms_per_mb=_guess(0.0),
        launch_ms=_guess(LAUNCH_MS),
    )
    return Processor(
        unit=unit,
        engine=engine,
        precision=precision,
        cost=cost,
        active_w=Quantity(CORE_W * scale, Source.ASSUMED),
        cores=cores,
        number=number,
    )


def _links(processors: list[Processor]) -> tuple[Link, ...]:
    """All reach the first one's memory; operators are shared where cores are not."""
    host = processors[0]
    return tuple(
        Link(
            host=host.id,
            accelerator=other.id,
            map_ms=_guess(0.0),
            map_ms_per_melem=_guess(0.0),
            sync_ms=_guess(SYNC_MS),
            image_ms_per_melem=_guess(0.0),
            contention=_guess(0.0),
            splits=not host.shares_cores(other),
        )
        for other in processors[1:]
    )


def _guess(value: float) -> Quantity:
    return Quantity(value, Source.ASSUMED, GUESS)
