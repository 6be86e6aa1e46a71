"""muLayer (Kim et al., EuroSys'19): every operator split over output channels at one coarse ratio, forks by branches.

Its predictor is linear in FLOPs for each processor, so that all operators get the same share: the GPU's is
T_cpu / (T_cpu + T_gpu) of whole-model times, rounded to quarters. Buffer memory on both sides, a join after every
operator. Ignores what sharing costs (that is why it loses on fast phones), load, and the screen. Operators that
cannot be split go to the GPU where it takes them.

Branch distribution: where paths part and meet again, the same predictor compares two ways: its operators split as
everywhere, or each branch whole on one processor, side by side. Of the latter the one with the smallest makespan
counts, and it is taken if it is no slower (it joins once). A fork needs two branches with a convolution, a product of
matrices or a pool. Of nested forks the outermost is looked at first; those inside it count where it is not distributed.
Networks without forks, such as CoDL's lists of operators, to whose "uLayer-like" rows hetrl's device files are fitted,
are split throughout.

Processor-friendly quantization: the CPU computes in int8, the GPU in fp16. A plan's processors have a precision, so
muLayer takes the GPU in fp16 where an engine set has several GPUs, and the CPU that shares with them, whatever its
precision: its int8 is used, and priced in accuracy, where the set's CPU is an int8 one. Where a set is fp32 alone, as
MACE's, everything is computed in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hetrl.agents.policies.base import sharing_gpus
from hetrl.agents.policies.forks import Fork, forks
from hetrl.device_bridge.spec import GpuCost
from hetrl.device_bridge.surrogate.cost_model import CostModel
from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.device_bridge.surrogate.tables import MEMORIES, Option, Tables
from hetrl.graph import Geometry, OpKind
from hetrl.plan import Axis, Memory

Floats = npt.NDArray[np.float64]
QUARTERS_PCT = (25, 50, 75)
MOST_WAYS = 4096  # to distribute branches that are kept at a time: all of them for up to 12 branches
_MACS = frozenset({OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.GEMM, OpKind.MATMUL})


def gpu_share_pct(model: CostModel) -> int:
    """The GPU's share of every operator: 0, 25, 50, 75 or 100 percent."""
    t_gpu, t_cpu = _whole_model_ms(model.tables)
    return 25 * round(4 * t_cpu / (t_cpu + t_gpu)) if t_cpu + t_gpu > 0 else 0


def mulayer_schedule(model: CostModel) -> Schedule:
    """muLayer's plan. The tables must hold the quarters among their channel splits."""
    tables = model.tables
    share = gpu_share_pct(model)
    gpu, cpu = gpu_and_cpu(tables)
    split = Option((gpu, cpu), Axis.OUTPUT_CHANNELS, (share, 100 - share))
    wanted = [i for i, option in enumerate(tables.options) if option == split]
    wanted += [gpu, cpu] if share > 0 else [cpu]
    options = [next(o for o in wanted if tables.possible[k, o]) for k in range(len(tables.workload.items))]
    whole, beside = set[int](), False
    predicted = predicted_ms(tables)
    for fork in forks(tables.workload):
        if whole.isdisjoint(k for branch in fork.branches for k in branch):
            found = _distributed(fork, tables, predicted, options)
            for k, processor in found.items():
                options[k] = processor
            whole |= found.keys()
            beside |= len(set(found.values())) > 1
    return Schedule(tuple(Placed(k, k, option, Memory.BUFFER) for k, option in enumerate(options)), overlap=beside)


def gpu_and_cpu(tables: Tables) -> tuple[int, int]:
    """Numbers of the two processors that share operators."""
    processors = tables.engine.processors
    able = sharing_gpus(tables.engine)
    gpu = next((p for p in able if processors[p].precision == "fp16"), able[0])
    return gpu, [p.unit for p in processors].index("cpu")


def operations(geometry: Geometry) -> int:
    """Floating-point operations of convolutions, products of matrices and pools; 0 of all others."""
    g = geometry
    out, window = g.batch * g.out_channels * g.out_h * g.out_w, g.kernel_h * g.kernel_w
    if g.kind is OpKind.POOL:
        return out * window
    if g.kind is OpKind.GLOBAL_POOL:
        return g.batch * g.in_channels * g.in_h * g.in_w
    if g.kind is OpKind.CONV_TRANSPOSE:
        return 2 * g.batch * g.in_channels * g.in_h * g.in_w * (g.out_channels // g.groups) * window
    return 2 * out * (g.in_channels // g.groups) * window if g.kind in _MACS else 0


def predicted_ms(tables: Tables) -> Floats:
    """(n, 2) what the predictor gives each position on the GPU and on the CPU, inf where the GPU does not take it."""
    gpu = gpu_and_cpu(tables)[0]
    work = np.array([operations(item.geometry) for item in tables.workload.items], dtype=np.float64)
    taken = tables.possible[:, gpu]
    known = float(work[taken].sum())
    rates = np.array(_whole_model_ms(tables)) / known if known else np.zeros(2)
    predicted = work[:, None] * rates
    predicted[~taken, 0] = np.inf
    return predicted


def _whole_model_ms(tables: Tables) -> tuple[float, float]:
    """Time on the GPU and on the CPU of all that the GPU takes, in the memory that it likes."""
    gpu, cpu = gpu_and_cpu(tables)
    cost = tables.engine.processors[gpu].cost
    assert isinstance(cost, GpuCost)  # all that share have one
    time = tables.time_ms[MEMORIES.index(cost.friendly_memory), :, :, 0, :]
    on_gpu = np.isfinite(time[:, gpu, gpu])
    return float(time[on_gpu, gpu, gpu].sum()), float(time[on_gpu, cpu, cpu].sum())


def _distributed(fork: Fork, tables: Tables, predicted: Floats, options: Sequence[int]) -> dict[int, int]:
    """The processor of each of a fork's positions; empty where the predictor would rather split them.

    :param options: what each position has as long as it is not distributed.
    """
    items = tables.workload.items
    if sum(any(operations(items[k].geometry) for k in branch) for branch in fork.branches) < 2:
        return {}
    pair = gpu_and_cpu(tables)
    ways: dict[tuple[float, float], tuple[int, ...]] = {(0.0, 0.0): ()}
    for branch in fork.branches:
        gpu_ms, cpu_ms = predicted[list(branch)].sum(axis=0).tolist()
        more: dict[tuple[float, float], tuple[int, ...]] = {}
        for (on_gpu, on_cpu), chosen in ways.items():
            more.setdefault((on_gpu + gpu_ms, on_cpu), (*chosen, pair[0]))
            more.setdefault((on_gpu, on_cpu + cpu_ms), (*chosen, pair[1]))
        ways = {loads: more[loads] for loads in sorted(more, key=max)[:MOST_WAYS]}
    loads, chosen = next(iter(ways.items()))
    split_ms = sum(_as_placed_ms(tables.options[options[k]], predicted[k], pair) for b in fork.branches for k in b)
    if max(loads) > split_ms * (1 + 1e-9):
        return {}
    return {k: processor for branch, processor in zip(fork.branches, chosen, strict=True) for k in branch}


def _as_placed_ms(option: Option, predicted: Floats, pair: tuple[int, int]) -> float:
    """The predictor's time of one position, split or on one processor."""
    shares = dict(zip(option.processors, option.shares_pct, strict=True))
    return max(float(predicted[i]) * shares[p] / 100 for i, p in enumerate(pair) if p in shares)
