"""Fit of the `mace` engine sets to what CoDL measured on four phones.

Stage 1 fits each phone's CPU and GPU to whole-model latencies on one processor; how much slower special kernels are
is shared between phones (per GPU family). The ratios that CoDL chose per operator are weak extra evidence: where it
splits at a ratio r, the GPU is r / (1 - r) times as fast. Stage 2 fits contention (one number for all phones) and
each phone's factor of the memory type that its GPU does not like, by planning and evaluating as hetrl itself does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from hetrl.calibration.rows import Cell, powers_w, ratios, sharing_points, workload_of_rows
from hetrl.device_bridge.spec import CpuCost, Engine, GpuCost, Link, Processor, Quantity, Source
from hetrl.device_bridge.surrogate.op_time import OpShapes, cpu_time_ms, gpu_time_ms
from hetrl.device_bridge.surrogate.tables import Layout, Tables, build_layout, engine_options, time_layout
from hetrl.errors import MissingExtra
from hetrl.plan import Memory

Floats = npt.NDArray[np.float64]
PHONES = ("d1", "d3", "d4", "d5")
FAMILY = {"d1": "adreno", "d3": "adreno", "d4": "adreno", "d5": "mali"}
FRIENDLY = {"adreno": Memory.IMAGE, "mali": Memory.BUFFER}
MODELS = ("yolov2", "vgg16", "posenet", "fst", "retinaface")
SHARES_PCT = tuple(range(5, 100, 5))  # CoDL's tenths, muLayer's quarters, the twentieths of "Ideal"
HEAVY_MACS = 5e7  # below this, launches and not arithmetic decide CoDL's ratio
CPU, GPU, LINK = "cpu/mace/fp32", "gpu/mace/fp32", 0

# Priors (value, spread of its logarithm). Centres of the kernel factors: what MACE's kernels do (a stride-2 3x3 has
# no Winograd, 7x7 and 9x9 run direct); the spreads are wide enough that the rows decide.
CELL_SPREAD = {"adreno": 0.04, "mali": 0.10}
RATIO_SPREAD = 0.7
DEVICE_PRIOR = {
    "cpu_ms_per_gmac": (19.0, 0.5),
    "cpu_ms_per_mb": (0.10, 0.3),
    "gpu_ms_per_gmac": (12.0, 0.7),
    "gpu_ms_per_mb": (0.08, 0.7),
    "gpu_launch_ms": (0.12, 0.7),
}
SHARED_PRIOR = {"cpu_direct": (1.3, 0.4), "cpu_stride2": (5.0, 0.4)}
FAMILY_PRIOR = {"gpu_1x1": (0.9, 0.3), "gpu_large": (1.4, 0.4)}


@dataclass(frozen=True)
class Fit:
    """Fitted numbers: `device[phone][name]`, `shared[name]` (family ones as `family.name`), `sharing[name]`."""

    device: Mapping[str, Mapping[str, float]]
    shared: Mapping[str, float]
    sharing: Mapping[str, float]
    unfriendly: Mapping[str, float]
    contention: float


def sharing_lines() -> dict[str, float]:
    """Cost of sharing data on d1: `map = map_ms + map_rate * E`, `transform = image_rate * E`, mean pre-sync."""
    points = sharing_points()
    map_x, map_y = np.array([(e, t) for kind, e, t in points if kind == "map"]).T
    trans_x, trans_y = np.array([(e, t) for kind, e, t in points if kind == "transform"]).T
    rate, constant = np.polyfit(map_x, map_y, 1)
    image = float((trans_x @ trans_y) / (trans_x @ trans_x))  # through the origin: the free constant is -0.002 ms
    sync = float(np.mean([t for kind, _, t in points if kind == "presync"]))
    return {"map_ms": float(constant), "map_rate": float(rate), "sync_ms": sync, "image_rate": image}


def power_w() -> dict[str, float]:
    """d1's power, split so that CPU alone, GPU alone and both together give their measured means."""
    mean = {
        name: float(np.mean([w for system, w in powers_w() if system == name]))
        for name in ("MACE(CPU)", "MACE(GPU)", "CoDL")
    }
    idle = mean["MACE(CPU)"] + mean["MACE(GPU)"] - mean["CoDL"]
    return {"idle_w": idle, "cpu_w": mean["MACE(CPU)"] - idle, "gpu_w": mean["MACE(GPU)"] - idle}


def fitted(value: float, note: str) -> Quantity:
    """A fitted number."""
    return Quantity(value, Source.FITTED, note)


def engine_of(fit: Fit, phone: str) -> Engine:
    """The `mace` engine set of a phone under a fit."""
    own, family = fit.device[phone], FAMILY[phone]
    rows = "rows of hetrl/data/codl_latencies.csv"
    assumed = Source.ASSUMED
    power = power_w()
    cpu = CpuCost(
        ms_per_gmac=fitted(own["cpu_ms_per_gmac"], rows),
        ms_per_mb=fitted(own["cpu_ms_per_mb"], rows),
        launch_ms=Quantity(0.02, assumed, "thread team start; too small to be seen in the rows"),
        direct_factor=fitted(fit.shared["cpu_direct"], rows + ", all phones"),
        stride2_factor=fitted(fit.shared["cpu_stride2"], rows + ", all phones"),
        depthwise_factor=Quantity(3.0, assumed, "no depthwise network in the rows"),
    )
    gpu = GpuCost(
        ms_per_gmac=fitted(own["gpu_ms_per_gmac"], rows),
        ms_per_mb=fitted(own["gpu_ms_per_mb"], rows),
        launch_ms=fitted(own["gpu_launch_ms"], rows),
        factor_1x1=fitted(fit.shared[f"{family}.gpu_1x1"], rows + f", {family} phones"),
        large_kernel_factor=fitted(fit.shared[f"{family}.gpu_large"], rows + f", {family} phones"),
        depthwise_factor=Quantity(2.0, assumed, "no depthwise network in the rows"),
        dense_factor=Quantity(1.9, assumed, "dense layers' weights are read with little reuse; one network has them"),
        friendly_memory=FRIENDLY[family],
        unfriendly_factor=fitted(fit.unfriendly[phone], "CoDL rows of the other memory type"),
        unfriendly_share_1x1=Quantity(0.72, assumed, "1x1 kernels reuse less through the texture cache"),
        slice_launch_ms=Quantity(
            0.015, assumed, "submission to a busy queue: 10 to 20 us on Snapdragon 8 Gen 3 (HeteroLLM)"
        ),
        queue_wait_ms=Quantity(0.06, assumed, "empty less busy queue: 50 to 100 against 10 to 20 us (HeteroLLM)"),
    )
    points = "points of hetrl/data/codl_sharing_points.csv"
    link = Link(
        host=CPU,
        accelerator=GPU,
        map_ms=fitted(fit.sharing["map_ms"], points),
        map_ms_per_melem=fitted(fit.sharing["map_rate"], points),
        sync_ms=fitted(fit.sharing["sync_ms"], points),
        image_ms_per_melem=fitted(fit.sharing["image_rate"], points),
        contention=fitted(fit.contention, "CoDL rows, all phones"),
    )
    note = "mean power of MACE and CoDL runs, hetrl/data/codl_power.csv"
    return Engine(
        processors=(
            Processor(unit="cpu", engine="mace", precision="fp32", cost=cpu, active_w=fitted(power["cpu_w"], note)),
            Processor(
                unit="gpu",
                engine="mace",
                precision="fp32",
                memory=tuple(Memory),
                unsupported=GPU_UNSUPPORTED,
                cost=gpu,
                active_w=fitted(power["gpu_w"], note),
            ),
        ),
        links=(link,),
    )


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
def layout_of_rows(model: str) -> Layout:
    """The tables' layout of a measured network; the same for all phones."""
    engine = engine_of(_start(), "d1")
    return build_layout(workload_of_rows(model), engine, engine_options(engine, SHARES_PCT))


def tables_of_rows(model: str, engine: Engine) -> Tables:
    """Tables of a measured network on an engine."""
    return time_layout(layout_of_rows(model), engine)


@cache
def _whole_ops(model: str) -> OpShapes:
    part = layout_of_rows(model).parts[0]
    assert part is not None  # the CPU runs everything
    alone = part.option == 0
    return OpShapes(**{name: values[alone] for name, values in vars(part.shapes).items()})


def _start() -> Fit:
    return Fit(
        device={phone: {k: v[0] for k, v in DEVICE_PRIOR.items()} for phone in PHONES},
        shared={k: v[0] for k, v in SHARED_PRIOR.items()}
        | {f"{f}.{k}": v[0] for f in FRIENDLY for k, v in FAMILY_PRIOR.items()},
        sharing=sharing_lines(),
        unfriendly=dict.fromkeys(PHONES, 4.0),
        contention=0.1,
    )


def fit_singles(train: Iterable[Cell], ratio_models: Iterable[str] = MODELS) -> Fit:
    """Stage 1: least squares on logarithms over single-processor cells, with priors and weak per-operator ratios.

    :param train: cells to fit to; others than `mace_cpu` and `mace_gpu` are passed over.
    :param ratio_models: networks whose per-operator ratios may be used.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise MissingExtra("calibration", "calibrate") from None
    start = _start()
    names = [("device", p, k) for p in PHONES for k in DEVICE_PRIOR] + [("shared", "", k) for k in start.shared]
    prior = [DEVICE_PRIOR[k] if kind == "device" else _shared_prior(k) for kind, _, k in names]
    centre = np.log([value for value, _ in prior])
    spread = np.array([width for _, width in prior])
    single = [c for c in train if c.strategy in ("mace_cpu", "mace_gpu") and c.device in PHONES]
    wanted = set(ratio_models)
    macs = {m: _macs(m) for m in MODELS}
    chosen = [r for r in ratios() if r.model in wanted and macs[r.model][r.position] >= HEAVY_MACS]

    def unpack(x: Floats) -> Fit:
        value = dict(zip(names, np.exp(x), strict=True))
        device = {p: {k: float(value["device", p, k]) for k in DEVICE_PRIOR} for p in PHONES}
        shared = {k: float(value["shared", "", k]) for k in start.shared}
        return Fit(device, shared, start.sharing, start.unfriendly, start.contention)

    def residuals(x: Floats) -> Floats:
        times = _op_times(unpack(x))
        out = [(x - centre) / spread]
        out.append(
            np.array(
                [
                    np.log(times[c.device, c.model][int(c.strategy == "mace_gpu")].sum() / c.latency_ms)
                    / CELL_SPREAD[FAMILY[c.device] if c.strategy == "mace_gpu" else "adreno"]
                    for c in single
                ]
            )
        )
        speed = [
            np.log(times[r.device, r.model][0, r.position] / times[r.device, r.model][1, r.position]) for r in chosen
        ]
        target = [np.log(r.gpu_ratio / (1 - r.gpu_ratio)) for r in chosen]
        out.append((np.array(speed) - np.array(target)) / RATIO_SPREAD)
        return np.concatenate(out)

    return unpack(least_squares(residuals, centre, loss="soft_l1").x)


def _shared_prior(name: str) -> tuple[float, float]:
    return SHARED_PRIOR[name] if name in SHARED_PRIOR else FAMILY_PRIOR[name.split(".")[1]]


def _macs(model: str) -> Floats:
    items = workload_of_rows(model).items
    return np.array([i.weight_elements * i.geometry.out_h * i.geometry.out_w for i in items], dtype=float)


def _op_times(fit: Fit) -> dict[tuple[str, str], Floats]:
    """(2, n) CPU and GPU time of each operator, for every phone and network."""
    times = {}
    for phone in PHONES:
        cpu, gpu = (p.cost for p in engine_of(fit, phone).processors)
        assert isinstance(cpu, CpuCost) and isinstance(gpu, GpuCost)
        for model in MODELS:
            ops = _whole_ops(model)
            times[phone, model] = np.stack([cpu_time_ms(ops, cpu), gpu_time_ms(ops, gpu, friendly=True)])
    return times
