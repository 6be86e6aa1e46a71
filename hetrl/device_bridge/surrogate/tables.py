"""Lookup tables of a workload on an engine set: time, traffic and memory of every group under every option.

An option is a placement: one processor, a link's two processors with an axis and shares, or several processors with a
branch each. For a height split the numbers depend on the last group of the chain too (halos grow backwards from its
cut), so tables have an axis `offset` = chain end - position. For branches it is 1 where a group's data were made in its
own branch (`made_inside`), 0 where it reads all of them. All other options use offset 0.

Shapes: n positions, O options, L offsets, P processors, M memory types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.spec import Engine, GpuCost, Link, Processor
from hetrl.device_bridge.surrogate.op_time import BYTES_PER_ELEMENT, time_ms
from hetrl.device_bridge.surrogate.pieces import Piece, Timed, timed
from hetrl.device_bridge.surrogate.workload import WorkItem, Workload
from hetrl.graph import InputRole, OpKind
from hetrl.plan import Axis, Memory
from hetrl.splits import channel_bounds, every_part_works, input_rows, row_bounds

Floats = npt.NDArray[np.float64]
MEMORIES = tuple(Memory)
MELEMS = 1e6
DEFAULT_SHARES_PCT = tuple(range(10, 100, 10))  # of the accelerator; CoDL's own grid
GROUPED_CONV = "grouped_conv"  # in a processor's `unsupported`: convolutions in groups, depthwise ones aside
MAX_CHAIN = 30  # CoDL's limit on a chain's length
# Operators that read all input channels for any slice of output channels.
_READS_ALL_CHANNELS = frozenset({OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.GEMM, OpKind.MATMUL})


@dataclass(frozen=True)
class Option:
    """A placement: `processors` index the engine's; accelerators come before their host."""

    processors: tuple[int, ...]
    axis: Axis = Axis.NONE
    shares_pct: tuple[int, ...] = (100,)

    @property
    def split(self) -> bool:
        return len(self.processors) > 1


@dataclass(frozen=True)
class Layout:
    """What of the tables depends on shapes alone, not on how fast the device is.

    :param parts: per processor of the engine, its parts; None if it has none.
    :param host_in: per position and read, (O, L): 1e6 elements of the operand that the host's part of a split reads. Of
        branches, which start from and end in host memory, those that all accelerators' parts read.
    :param host_out: (n, O, L), 1e6 elements that the same parts contribute to the output.
    :param possible: (n, O), whether a segment may end here with this option; of branches, whether one may begin here.
    :param weights_mb: (n, O), bytes of weights held by all parts together; what branches drop is not taken off.
    """

    workload: Workload
    options: tuple[Option, ...]
    parts: tuple[Timed | None, ...]
    host_in: tuple[tuple[Floats, ...], ...]
    host_out: Floats
    possible: npt.NDArray[np.bool_]
    weights_mb: Floats


@dataclass(frozen=True)
class Tables(Layout):
    """A layout with its times on one engine set.

    :param time_ms: (M, n, O, L, P), busy time of each processor; inf where the option is impossible.
    :param stall_ms: (M, n, O, 1), time in which an operator waits for the CPU to do a suspended share of it.
    :param transfer_factor: how much longer moving data takes than on a cold device.
    """

    engine: Engine
    time_ms: Floats
    stall_ms: Floats | None = None
    transfer_factor: float = 1.0


def engine_options(engine: Engine, shares_pct: Sequence[int] = DEFAULT_SHARES_PCT) -> tuple[Option, ...]:
    """Every placement that an engine set offers: single processors, then each link's splits."""
    index = {processor.id: i for i, processor in enumerate(engine.processors)}
    options = [Option((i,)) for i in range(len(engine.processors))]
    for link in engine.links:
        if not link.splits:
            continue
        pair = (index[link.accelerator], index[link.host])
        for axis in (Axis.HEIGHT, Axis.OUTPUT_CHANNELS):
            options += [Option(pair, axis, (share, 100 - share)) for share in shares_pct]
    return tuple(options)


def supports(processor: Processor, item: WorkItem) -> bool:
    """Whether a processor runs a group; a CPU runs everything."""
    if processor.is_cpu:
        return True
    refused, geometry = set(processor.unsupported), item.geometry
    grouped = geometry.groups > 1 and not geometry.depthwise
    if geometry.kind is OpKind.UNKNOWN or (grouped and GROUPED_CONV in refused):
        return False
    return geometry.kind.value not in refused and not item.op_types & refused


def made_inside(workload: Workload, position: int, start: int | npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether a group's data are made in its own segment, which begins at `start` (one, or one per schedule)."""
    reads = workload.items[position].reads
    made = workload.made_at[reads[0].tensor] if reads else -1
    return np.asarray(made >= np.asarray(start))


def build_tables(workload: Workload, engine: Engine, options: Sequence[Option], max_chain: int = MAX_CHAIN) -> Tables:
    """Tables of `workload` under `options`; height chains have at most `max_chain` groups."""
    return time_layout(build_layout(workload, engine, options, max_chain), engine)


def build_layout(workload: Workload, engine: Engine, options: Sequence[Option], max_chain: int = MAX_CHAIN) -> Layout:
    """The part of `build_tables` that any engine with the same processors and support shares."""
    n, count = len(workload.items), len(options)
    branched = any(option.axis is Axis.BRANCHES for option in options)
    depth = max(1, min(max(max_chain, 2 if branched else 1), n))
    host_out = np.zeros((n, count, depth))
    host_in = tuple(tuple(np.zeros((count, depth)) for _ in item.reads) for item in workload.items)
    possible = np.zeros((n, count), dtype=bool)
    weights_mb = np.zeros((n, count))
    runs = [[supports(p, item) for p in engine.processors] for item in workload.items]
    pieces: list[Piece] = []
    for o, option in enumerate(options):
        able = [all(run[p] for p in option.processors) for run in runs]
        for k, item in enumerate(workload.items):
            weights = item.weight_elements * BYTES_PER_ELEMENT / 1e6
            weights_mb[k, o] = weights * (2 if option.axis is Axis.HEIGHT else 1)
            if not able[k]:
                continue
            if not option.split:
                possible[k, o] = True
                for g in (item.geometry, *([item.front] if item.front else [])):
                    channels = (g.out_channels, g.in_channels)
                    front = g is item.front
                    pieces.append(Piece(k, o, 0, option.processors[0], g.out_h, *channels, 1.0, 1.0, 1.0, front))
            elif option.axis is not Axis.HEIGHT:
                parts = _channel_pieces(workload, k, o, option)
                possible[k, o] = bool(parts)
                pieces += parts
                _channel_traffic(
                    workload, parts[-1:] if option.axis is not Axis.BRANCHES else parts[:-1], host_in, host_out
                )
                if option.axis is Axis.BRANCHES and depth > 1:
                    inner = _channel_pieces(workload, k, o, option, inner=True)
                    pieces += inner
                    _channel_traffic(workload, inner[:-1], host_in, host_out)
            else:
                chain = _height_pieces(workload, k, o, option, able, depth, host_in, host_out)
                possible[k, o] = bool(chain)
                pieces += chain
    return Layout(
        workload=workload,
        options=tuple(options),
        parts=tuple(timed(workload, [x for x in pieces if x.processor == p]) for p in range(len(engine.processors))),
        host_in=host_in,
        host_out=host_out,
        possible=possible,
        weights_mb=weights_mb,
    )


def time_layout(layout: Layout, engine: Engine) -> Tables:
    """Time all parts of a layout on an engine set."""
    shape = (len(MEMORIES), *layout.host_out.shape, len(engine.processors))
    time = np.full(shape, np.inf)
    for part in layout.parts:
        if part is not None:
            time[:, part.position, part.option, part.offset] = 0.0  # who has no part of an option rests
    for p, (processor, part) in enumerate(zip(engine.processors, layout.parts, strict=True)):
        if part is None:
            continue
        for m, memory in enumerate(MEMORIES):
            friendly = not isinstance(processor.cost, GpuCost) or memory is processor.cost.friendly_memory
            took = time_ms(part.shapes, processor.cost, friendly=friendly)
            np.add.at(time[m, ..., p], (part.position, part.option, part.offset), took)  # of two operators: both
    return Tables(**vars(layout), engine=engine, time_ms=time)


def corrected(tables: Tables, factors: Mapping[str, Sequence[float]]) -> Tables:
    """Tables with each processor's times of each fusion group multiplied by what measurements say (`Engine`)."""
    if not factors:
        return tables
    groups = [item.group for item in tables.workload.items]
    times = tables.time_ms.copy()
    for p, processor in enumerate(tables.engine.processors):
        if processor.id in factors:
            times[..., p] *= np.array(factors[processor.id])[groups][None, :, None, None]
    return replace(tables, time_ms=times)


def _channel_pieces(workload: Workload, k: int, o: int, option: Option, *, inner: bool = False) -> list[Piece]:
    """Slices of output channels; `inner` ones read only the input channels that their own branch made."""
    item, g = workload.items[k], workload.items[k].geometry
    narrow = inner and _mixes_channels(item)
    bounds = channel_bounds(g.out_channels, option.shares_pct)
    read = channel_bounds(g.in_channels, option.shares_pct) if narrow else bounds
    if not (item.splits_channels and every_part_works(bounds) and every_part_works(read)):
        return []
    pieces = []
    for number, processor in enumerate(option.processors):
        channels = bounds[number + 1] - bounds[number]
        part = channels / g.out_channels
        in_channels = read[number + 1] - read[number] if narrow else g.in_channels
        window = in_channels / g.in_channels
        taken = window if _mixes_channels(item) else part
        pieces.append(Piece(k, o, int(inner), processor, g.out_h, channels, in_channels, taken, part, part * window))
    return pieces


def _mixes_channels(item: WorkItem) -> bool:
    return item.geometry.kind in _READS_ALL_CHANNELS and not item.geometry.depthwise


def _channel_traffic(
    workload: Workload, away: Sequence[Piece], host_in: tuple[tuple[Floats, ...], ...], host_out: Floats
) -> None:
    """:param away: one group's pieces whose operands and results are elsewhere."""
    for piece in away:
        k, place = piece.position, (piece.option, piece.offset)
        item = workload.items[k]
        part = piece.channels / item.geometry.out_channels
        for slot, read in enumerate(item.reads):
            fraction = 1.0 if _mixes_channels(item) and read.role is not InputRole.ALIGNED else part
            host_in[k][slot][place] += fraction * workload.elements[read.tensor] / MELEMS
        host_out[k][place] += part * sum(workload.elements[t] for t in item.writes) / MELEMS


def _height_pieces(
    workload: Workload,
    end: int,
    o: int,
    option: Option,
    able: Sequence[bool],
    depth: int,
    host_in: tuple[tuple[Floats, ...], ...],
    host_out: Floats,
) -> list[Piece]:
    """The pieces of every chain that ends at `end`: rows are cut there, and halos are added going backwards."""
    if not workload.items[end].splits_height:
        return []
    rows_end = row_bounds(workload.items[end].geometry.out_h, option.shares_pct)
    if not every_part_works(rows_end):
        return []
    pieces: list[Piece] = []
    upper: dict[int, int] = {}  # position -> rows [0, upper) of the accelerator's part
    lower: dict[int, int] = {}  # position -> rows [lower, all) of the host's part
    for k in range(end, max(-1, end - depth), -1):
        item = workload.items[k]
        if not (able[k] and item.splits_height):
            break
        upper[k], lower[k] = _rows_needed(workload, k, upper, lower, option)
        rows = item.geometry.out_h
        for processor, part_rows in zip(option.processors, (upper[k], rows - lower[k]), strict=True):
            fraction = part_rows / rows
            g = item.geometry
            pieces.append(
                Piece(k, o, end - k, processor, part_rows, g.out_channels, g.in_channels, fraction, fraction, 1.0)
            )
        for slot, read in enumerate(item.reads):
            share = (rows - lower[k]) / rows
            if read.role is InputRole.WINDOW:
                share = 1 - _window(item, lower[k], rows)[0] / max(1, item.geometry.in_h)
            host_in[k][slot][o, end - k] = share * workload.elements[read.tensor] / MELEMS
        out = sum(workload.elements[t] for t in item.writes)
        host_out[k, o, end - k] = (rows - upper[k]) / rows * out / MELEMS
    return pieces


def _rows_needed(
    workload: Workload, k: int, upper: dict[int, int], lower: dict[int, int], option: Option
) -> tuple[int, int]:
    """Rows of group k's output that the parts of its readers in the chain need; its own cut where it has none."""
    item = workload.items[k]
    rows = item.geometry.out_h
    ends, starts = [], []
    for reader in sorted({r for t in item.writes for r in workload.readers[t] if r in upper}):
        for read in workload.items[reader].reads:
            if read.tensor in item.writes:
                if read.role is InputRole.WINDOW:
                    ends.append(_window(workload.items[reader], 0, upper[reader])[1])
                    starts.append(_window(workload.items[reader], lower[reader], _rows(workload, reader))[0])
                else:
                    ends.append(upper[reader])
                    starts.append(lower[reader])
    if not ends:
        cut = row_bounds(rows, option.shares_pct)[1]
        return cut, min(cut, rows - 1)
    start = min(*starts, rows - 1)
    return min(rows, max(1, start, *ends)), start  # together the parts always make the whole tensor


def _rows(workload: Workload, position: int) -> int:
    return workload.items[position].geometry.out_h


def _window(item: WorkItem, first: int, last: int) -> tuple[int, int]:
    g = item.geometry
    return input_rows(
        first, last, height=g.in_h, kernel=g.kernel_h, stride=g.stride_h, dilation=g.dilation_h, pad_top=g.pad_top
    )


def link_of(engine: Engine, accelerator: int) -> Link:
    """The link between an accelerator and its host."""
    name = engine.processors[accelerator].id
    return next(link for link in engine.links if link.accelerator == name)
