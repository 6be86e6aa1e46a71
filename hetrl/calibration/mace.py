"""The `mace` engine set from a phone's numbers, and the measured networks on it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np

from hetrl.calibration.phones import Phone, phones
from hetrl.calibration.rows import powers_w, sharing_points, workload_of_rows
from hetrl.device_bridge.quantity import Quantity, Source
from hetrl.device_bridge.spec import CpuCost, Engine, GpuCost, Link, Processor
from hetrl.device_bridge.surrogate.tables import Layout, Tables, build_layout, engine_options, time_layout
from hetrl.plan import Memory

SHARES_PCT = tuple(range(5, 100, 5))  # CoDL's tenths, muLayer's quarters, the twentieths of "Ideal"
CPU, GPU = "cpu/mace/fp32", "gpu/mace/fp32"
CPU_LAUNCH_MS = 0.02
QUEUE_WAIT_MS = 0.06
UNFRIENDLY_SHARE_1X1 = 0.72
MEASURED_PHONE = "d1"  # where data sharing and power were measured
# What a fit or a scaling rule gives for a phone.
NUMBERS = (
    "cpu_ms_per_gmac", "cpu_ms_per_mb", "cpu_direct", "cpu_stride2",
    "gpu_ms_per_gmac", "gpu_ms_per_mb", "gpu_dense_ms_per_mb", "gpu_launch_ms", "gpu_1x1", "gpu_large",
    "unfriendly", "contention",
)  # fmt: skip

# MACE's OpenCL operators work on NHWC images of activations (its documentation lists convolution, depthwise and
# transposed convolution, pooling, matrix product by weights, element-wise, activation, batch norm, concat, resize,
# softmax, reduce mean, ...); what needs integer indexing or arbitrary layouts runs on the CPU.
GPU_UNSUPPORTED = (
    "matmul",
    "LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization", "LpNormalization",
    "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "NonMaxSuppression", "NonZero", "TopK",
    "ArgMax", "ArgMin", "CumSum", "Einsum", "Expand", "Tile", "Where", "Loop", "If", "Scan", "Cast", "Erf", "Gelu",
    "LSTM", "GRU", "RNN", "RoiAlign", "OneHot", "Attention",
)  # fmt: skip


@cache
def sharing_lines() -> dict[str, float]:
    """Cost of sharing data on d1: `map = map_ms + map_rate * E`, `transform = image_rate * E`, mean pre-sync."""
    points = sharing_points()
    map_x, map_y = np.array([(e, t) for kind, e, t in points if kind == "map"]).T
    trans_x, trans_y = np.array([(e, t) for kind, e, t in points if kind == "transform"]).T
    rate, constant = np.polyfit(map_x, map_y, 1)
    image = float((trans_x @ trans_y) / (trans_x @ trans_x))  # through the origin: the free constant is -0.002 ms
    sync = float(np.mean([t for kind, _, t in points if kind == "presync"]))
    return {"map_ms": float(constant), "map_rate": float(rate), "sync_ms": sync, "image_rate": image}


@cache
def power_w() -> dict[str, float]:
    """d1's power, split so that CPU alone, GPU alone and both together give their measured means."""
    mean = {
        name: float(np.mean([w for system, w in powers_w() if system == name]))
        for name in ("MACE(CPU)", "MACE(GPU)", "CoDL")
    }
    idle = mean["MACE(CPU)"] + mean["MACE(GPU)"] - mean["CoDL"]
    return {"idle_w": idle, "cpu_w": mean["MACE(CPU)"] - idle, "gpu_w": mean["MACE(GPU)"] - idle}


def from_d1(phone: str, value: float, note: str) -> Quantity:
    """A number that was fitted on d1 and is used unchanged for the others."""
    if phone == MEASURED_PHONE:
        return Quantity(value, Source.FITTED, note)
    return Quantity(value, Source.SCALED, f"as on d1: {note}")


def mace_engine(phone: str, numbers: Mapping[str, Quantity]) -> Engine:
    """The engine set of a phone under its `NUMBERS`."""
    facts = phones()[phone]
    note = "mean power of MACE and CoDL runs, hetrl/data/codl_power.csv"
    return Engine(
        processors=(
            Processor(
                unit="cpu",
                engine="mace",
                precision="fp32",
                cost=_cpu(numbers),
                active_w=from_d1(phone, power_w()["cpu_w"], note),
            ),
            Processor(
                unit="gpu",
                engine="mace",
                precision="fp32",
                memory=tuple(Memory),
                unsupported=GPU_UNSUPPORTED,
                cost=_gpu(facts, numbers),
                active_w=from_d1(phone, power_w()["gpu_w"], note),
            ),
        ),
        links=(_link(phone, numbers["contention"]),),
    )


def _cpu(numbers: Mapping[str, Quantity]) -> CpuCost:
    return CpuCost(
        ms_per_gmac=numbers["cpu_ms_per_gmac"],
        ms_per_mb=numbers["cpu_ms_per_mb"],
        launch_ms=Quantity(CPU_LAUNCH_MS, Source.ASSUMED, "thread team start; too small to be seen in the rows"),
        direct_factor=numbers["cpu_direct"],
        stride2_factor=numbers["cpu_stride2"],
        depthwise_factor=Quantity(3.0, Source.ASSUMED, "no depthwise network in the rows"),
    )


def _gpu(facts: Phone, numbers: Mapping[str, Quantity]) -> GpuCost:
    dense, traffic = numbers["gpu_dense_ms_per_mb"], numbers["gpu_ms_per_mb"]
    busy = "submission to a busy queue: 10 to 20 us on Snapdragon 8 Gen 3 (HeteroLLM)"
    empty = "empty less busy queue: 50 to 100 against 10 to 20 us (HeteroLLM)"
    share = "1x1 kernels reuse less through the texture cache"
    return GpuCost(
        ms_per_gmac=numbers["gpu_ms_per_gmac"],
        ms_per_mb=traffic,
        launch_ms=numbers["gpu_launch_ms"],
        factor_1x1=numbers["gpu_1x1"],
        large_kernel_factor=numbers["gpu_large"],
        depthwise_factor=Quantity(2.0, Source.ASSUMED, "no depthwise network in the rows"),
        dense_factor=Quantity(dense.value / traffic.value, dense.source, dense.note),
        friendly_memory=facts.friendly,
        unfriendly_factor=numbers["unfriendly"],
        unfriendly_share_1x1=Quantity(UNFRIENDLY_SHARE_1X1, Source.ASSUMED, share),
        slice_launch_ms=Quantity(0.015, Source.ASSUMED, busy),
        queue_wait_ms=Quantity(QUEUE_WAIT_MS, Source.ASSUMED, empty),
    )


def _link(phone: str, contention: Quantity) -> Link:
    lines, points = sharing_lines(), "points of hetrl/data/codl_sharing_points.csv"
    return Link(
        host=CPU,
        accelerator=GPU,
        map_ms=from_d1(phone, lines["map_ms"], points),
        map_ms_per_melem=from_d1(phone, lines["map_rate"], points),
        sync_ms=from_d1(phone, lines["sync_ms"], points),
        image_ms_per_melem=from_d1(phone, lines["image_rate"], points),
        contention=contention,
    )


@cache
def layout_of_rows(model: str) -> Layout:
    """The tables' layout of a measured network; the same for all phones."""
    engine = mace_engine(MEASURED_PHONE, dict.fromkeys(NUMBERS, Quantity(1.0, Source.ASSUMED)))
    return build_layout(workload_of_rows(model), engine, engine_options(engine, SHARES_PCT))


def tables_of_rows(model: str, engine: Engine) -> Tables:
    """Tables of a measured network on an engine."""
    return time_layout(layout_of_rows(model), engine)
