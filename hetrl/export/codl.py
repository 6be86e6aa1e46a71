"""CoDL: for each operator that it shares, along which axis, and how much of it the GPU does.

Two files of numbers (csu-eis/CoDL, codl-mobile/mace/core/partition_configer.cc) that the engine reads one after the
other while it runs: `pdim_config` has 1 for rows and 4 for output channels (`PartitionDim` in mace/public/mace.h),
`pratio_config` the GPU's share, 0 to 1. Only three operators of its net read them, those that end up as Conv2D,
Deconv2D or FullyConnected (mace/ops); all others run on the GPU where MACE has code for them, on the CPU elsewhere. A
dense layer is a FullyConnected behind a Reshape, and a MatMul behind a Flatten (tools/python/transform). Their order is
the converter's: depth first from the outputs, operands in order (`sort_by_execution`).

Deconv2D and FullyConnected know output channels alone, and so does everything in OpenCL buffers. Rounding is CoDL's
own (mace/ops/conv_2d_part_plan.cc), so where a share would give another cut than the plan's, the cut's share is
written. Chains are not in the files: each operator is shared by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from hetrl.export.base import Carries, Check, Claims, Exporter, Order, Wish, unit_of
from hetrl.export.bundle import Bundle, Refused
from hetrl.export.claims import carried
from hetrl.export.codl_fit import best_for_codl, done_without, places_refused, without_chains
from hetrl.export.codl_order import Kind, shared_operators
from hetrl.export.mace import kernel_time_limits, memory_limits, memory_of, net_name
from hetrl.export.texts import (
    one_each,
    read_json,
    read_text,
    segment_of,
    threads,
    write_json,
)
from hetrl.graph import OperatorGraph
from hetrl.plan import DEFAULT_QUEUE_WINDOW, Axis, Memory, Plan, Segment
from hetrl.splits import channel_bounds, row_bounds

ROWS, CHANNELS = 1, 4  # DIM_INPUT_HEIGHT, DIM_OUTPUT_CHANNEL
SIDECAR, ENVIRONMENT = "operators.json", "environment.sh"
FOLDER = "/storage/emulated/0/mace_workspace/config"  # where the engine looks
_MULTIPLE = 4  # of the GPU's channels


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An operator that CoDL shares; `dim` and `ratio` are the numbers of its two files, `size` what is cut."""

    node: str
    kind: Kind
    dim: int
    ratio: float
    size: int


class Operators(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the two files' numbers are of."""

    schema: Literal["hetrl.codl/1"] = "hetrl.codl/1"
    net: str
    operators: tuple[Entry, ...]


class Codl(Exporter):
    """See the module."""

    name = "codl"
    summary = "CoDL's pdim and pratio files: each convolution on CPU, GPU, or shared between them"
    carries = Carries(
        axes=frozenset({Axis.NONE, Axis.HEIGHT, Axis.OUTPUT_CHANNELS}),
        units=frozenset({"cpu", "gpu"}),
        precisions=frozenset({"fp32"}),
        shares_together=True,
        queue_window=True,
        kernel_slice=True,
        memory=True,
        compression=False,
    )
    needs_weights = False
    engines = frozenset({"mace"})  # CoDL is built on it, and its measurements are the device files' for that engine

    def claims(self, plan: Plan, graph: OperatorGraph) -> Claims:
        found = super().claims(plan, graph)
        refused = (*found.refused, *kernel_time_limits(plan), *memory_limits(plan), *one_each(plan))
        if plan.stretched:
            return Claims(refused, found.left_out)
        if any(self.carries.takes(name) for name in plan.processors):
            return Claims(refused, found.left_out)
        return Claims((*refused, *places_refused(plan, graph)), (*found.left_out, *done_without(plan, graph)))

    def carried(self, plan: Plan, graph: OperatorGraph) -> Plan:
        """The plan without what is left out, which are chains, too."""
        return without_chains(carried(self.carries, plan), graph)

    def lowered(self, wish: Wish) -> Plan:
        """See `hetrl.export.lowering.lowered`."""
        return best_for_codl(wish, self.carries)

    def write(self, order: Order, folder: Path) -> None:
        placed, net = segment_of(order.plan), net_name(order.plan.model.name)
        entries = tuple(
            _entry(found.node, found.kind, placed[found.node], _size(found.rows, found.channels, placed[found.node]))
            for found in shared_operators(order.graph)
        )
        write_json(folder / SIDECAR, Operators(net=net, operators=entries))
        (folder / f"pdim_config_{net}.txt").write_text(_row([str(e.dim) for e in entries]), encoding="utf-8")
        (folder / f"pratio_config_{net}.txt").write_text(_row([_number(e.ratio) for e in entries]), encoding="utf-8")
        (folder / ENVIRONMENT).write_text(environment(order.plan), encoding="utf-8")

    def readme(self, order: Order) -> str:
        buffers = memory_of(order.plan) is Memory.BUFFER
        dim = "DIM_OUTPUT_CHANNEL" if buffers else "DIM_INPUT_HEIGHT"
        count = threads(order.spec, order.plan.processors)
        outputs = ", ".join(order.graph.outputs)
        return (
            f"Both `.txt` files go to `{FOLDER}` on the phone;\n`{ENVIRONMENT}` is for the engine's environment. "
            f"Convert the model with its outputs in this order:\n{outputs}. Create the engine with GPU memory type "
            f"{int(buffers)} and {count} threads.\nIts first inference reads the files, later ones have `false` "
            "there:\n\n"
            f"    engine->Run(inputs, &outputs, PartitionRunConfig(kRatioFromConfigFile, {dim}, true));\n"
        )

    def text_checks(self, bundle: Bundle) -> Iterator[Check]:
        operators, plan = read_json(bundle, SIDECAR, Operators), bundle.manifest.plan
        if operators.net != net_name(plan.model.name):
            raise Refused(f"{SIDECAR} is for a net of another name than the plan's", "export the plan again")
        dims = read_dims(read_text(bundle, f"pdim_config_{operators.net}.txt"))
        ratios = read_ratios(read_text(bundle, f"pratio_config_{operators.net}.txt"))
        entries = operators.operators
        same = dims == tuple(e.dim for e in entries) and ratios == tuple(e.ratio for e in entries)
        yield Check("files", same, f"{len(dims)} axes, {len(ratios)} shares, {len(entries)} operators")
        placed = segment_of(plan)
        wrong = [e.node for e in entries if e.node not in placed or e != _entry(e.node, e.kind, placed[e.node], e.size)]
        detail = f"{len(entries)} operators where the plan has them"
        yield Check("placement", not wrong, f"{wrong[0]!r} is not as the plan says" if wrong else detail)
        found = read_text(bundle, ENVIRONMENT) == environment(plan)
        yield Check("environment", found, f"{ENVIRONMENT} {'is' if found else 'is not'} the plan's")


def environment(plan: Plan) -> str:
    """Shell lines that hold what the engine takes from its environment (codl-mobile/mace/core, `getenv`)."""
    return (
        f"export MACE_NET_NAME_HINT={net_name(plan.model.name)}\n"
        f"export MACE_LIMIT_OPENCL_KERNEL_TIME={int(plan.kernel_slice_ms is not None)}\n"
        f"export MACE_OPENCL_QUEUE_WINDOW_SIZE={plan.queue_window or DEFAULT_QUEUE_WINDOW}\n"
    )


def read_dims(text: str) -> tuple[int, ...]:
    """The numbers of a pdim file.

    :raises Refused: it holds something else.
    """
    if not set(text.split()) <= {str(ROWS), str(CHANNELS)}:
        raise Refused(f"an axis in the pdim file is neither {ROWS} nor {CHANNELS}", "export the plan again")
    return tuple(map(int, text.split()))


def read_ratios(text: str) -> tuple[float, ...]:
    """The numbers of a pratio file.

    :raises Refused: it holds something else.
    """
    try:
        found = tuple(map(float, text.split()))
    except ValueError:
        raise Refused("the pratio file holds what is no number", "export the plan again") from None
    if not all(0 <= ratio <= 1 for ratio in found):
        raise Refused("a share in the pratio file is not in 0 to 1", "export the plan again")
    return found


def gpu_rows(rows: int, ratio: float) -> int:
    """How many output rows CoDL gives the GPU: the share in tenths of a row, rounded up."""
    tenths = int(rows * float(np.float32(ratio)) * 10)
    return min(rows, -(-tenths // 10))


def gpu_channels(channels: int, ratio: float) -> int:
    """How many output channels CoDL gives the GPU: whole ones, rounded up to a multiple of 4."""
    whole = int(np.float32(channels) * np.float32(ratio))
    return min(channels, -(-whole // _MULTIPLE) * _MULTIPLE)


def gpu_share(axis: Axis, size: int, shares_pct: Sequence[int]) -> float:
    """The plan's share of the GPU, or where CoDL would cut elsewhere, the share that gives the plan's cut."""
    rows = axis is Axis.HEIGHT
    wanted = (row_bounds if rows else channel_bounds)(size, shares_pct)[1]
    cut = gpu_rows if rows else gpu_channels
    ratios = [float(_number(ratio)) for ratio in (shares_pct[0] / 100, wanted / size)]
    return next(ratio for ratio in ratios if cut(size, ratio) == wanted)


def _entry(node: str, kind: Kind, segment: Segment, size: int) -> Entry:
    if segment.axis is Axis.NONE:
        gpu = unit_of(segment.processors[0]) == "gpu"
        return Entry(node, kind, CHANNELS, float(gpu), size)  # to FullyConnected, 1 would mean all on the GPU
    ratio = gpu_share(segment.axis, size, [part.share_pct for part in segment.parts])
    return Entry(node, kind, ROWS if segment.axis is Axis.HEIGHT else CHANNELS, ratio, size)


def _size(rows: int, channels: int, segment: Segment) -> int:
    return rows if segment.axis is Axis.HEIGHT else channels


def _number(ratio: float) -> str:
    return f"{ratio:.6g}"


def _row(numbers: list[str]) -> str:
    return " ".join(numbers) + "\n"


EXPORTER = Codl()
