"""The shapes of a model after structured channel pruning, planned without weights.

Channels that must go together form a class: what convolutions and dense layers make, linked through everything that
keeps channels one to one (depthwise convolutions, normalization, elementwise operators, pools, resizes, ...). A
concatenation has the channels of its operands side by side, a flattened map each channel `repeat` times over.

An operator graph has no attributes (axes, permutations), so a class is pruned only where shapes alone prove what each
operator on its way does. Kept whole is what reaches the graph's inputs or outputs, grouped convolutions (whose groups
would lose equal shares of different channels), products of two activations, softmax and layer normalization, unknown
operators, and reshapes or transposes that mix channels or may do so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import msgspec

from hetrl.errors import UsageError
from hetrl.graph.geometry import geometry
from hetrl.graph.model import Geometry, Node, OperatorGraph, OpKind, Tensor
from hetrl.graph.operator import Attributes, Operand, Operator, dtype_bytes

_CONVOLUTIONS = frozenset({OpKind.CONV, OpKind.CONV_TRANSPOSE})
_WEIGHTED = _CONVOLUTIONS | {OpKind.GEMM}
_PRODUCTS = frozenset({"Gemm", "MatMul", "QLinearMatMul", "MatMulInteger"})
_CHANNEL_NORMS = frozenset({"BatchNormalization", "InstanceNormalization", "LRN"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_IMAGE_RANKS = (3, 4, 5)
_DIGITS = 9  # 20 * (1 - 0.8) is 4 channels, not 3.999999999999999


def pruned(graph: OperatorGraph, ratio: float, multiple: int = 4) -> OperatorGraph:
    """The graph with the share `ratio` of every prunable class of channels taken away.

    Of c channels, c * (1 - ratio) are kept, rounded up to a multiple of `multiple`, at most c. Tensor shapes, geometry
    and costs change; ids, groups, wiring, signatures and hashes stay those of the original, which plans refer to.
    Costs are exact for parameters of one width per operand; bytes of mixed widths are estimated.

    :param ratio: 0 (nothing changes) to below 1.
    :param multiple: channels; at least 1.
    :raises UsageError: a ratio or multiple out of range.
    """
    if not 0 <= ratio < 1:
        raise UsageError(f"a pruning ratio of {ratio} makes no sense", "0 <= ratio < 1")
    if multiple < 1:
        raise UsageError(f"channels cannot come in multiples of {multiple}", "1 or more")
    layouts, classes = _Tracer(graph).run()
    kept = classes.kept(ratio, multiple)
    tensors = {tensor.name: _shrunk(tensor, layouts.get(tensor.name), kept) for tensor in graph.tensors}
    resizer = _Resizer(graph.tensor_by_name, tensors, layouts)
    return msgspec.structs.replace(
        graph, nodes=tuple(resizer.resized(node) for node in graph.nodes), tensors=tuple(tensors.values())
    )


class _Layout(msgspec.Struct, frozen=True):
    """Where a tensor has its channels.

    :param parts: (class, repeat) pairs side by side along `axis`; each channel takes `repeat` consecutive places.
    """

    axis: int
    parts: tuple[tuple[int, int], ...]


class _Classes:
    """Classes of channels that are kept or taken together (a union-find)."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[int] = []
        self._whole: list[bool] = []

    def make(self, size: int, *, whole: bool = False) -> int:
        self._parent.append(len(self._parent))
        self._size.append(size)
        self._whole.append(whole)
        return len(self._parent) - 1

    def link(self, one: _Layout, other: _Layout) -> bool:
        """Make two layouts agree; False, and nothing done, where their parts do not match."""
        mine, theirs = ([(self._size[c], repeat) for c, repeat in layout.parts] for layout in (one, other))
        if mine != theirs:
            return False
        for (a, _), (b, _) in zip(one.parts, other.parts, strict=True):
            root, child = self._root(a), self._root(b)
            self._whole[root] |= self._whole[child]
            self._parent[child] = root
        return True

    def keep_whole(self, layout: _Layout) -> None:
        for index, _ in layout.parts:
            self._whole[self._root(index)] = True

    def kept(self, ratio: float, multiple: int) -> list[int]:
        """Channels that stay, for each class."""

        def stay(index: int) -> int:
            size = self._size[index]
            if self._whole[self._root(index)]:
                return size
            wanted = max(math.ceil(round(size * (1 - ratio), _DIGITS)), 1)
            return min(size, math.ceil(wanted / multiple) * multiple)

        return [stay(index) for index in range(len(self._parent))]

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = index = self._parent[self._parent[index]]
        return index


class _Tracer:
    """Follows channels through the graph. A tensor without a layout keeps its shape."""

    def __init__(self, graph: OperatorGraph) -> None:
        self._graph = graph
        self._shapes = {tensor.name: tensor.shape for tensor in graph.tensors}
        self._classes = _Classes()
        self._layouts: dict[str, _Layout] = {}

    def run(self) -> tuple[dict[str, _Layout], _Classes]:
        for node in self._graph.nodes:
            layout = self._traced(node) if len(node.outputs) == 1 else None
            if layout is None:
                self._keep_whole(node.inputs)
            elif self._shapes[node.outputs[0]][layout.axis] > 1:
                self._layouts[node.outputs[0]] = layout
        self._keep_whole(self._graph.outputs)
        return self._layouts, self._classes

    def _keep_whole(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self._layouts:
                self._classes.keep_whole(self._layouts[name])

    def _traced(self, node: Node) -> _Layout | None:
        """The layout of the node's only output; None where that, or what its inputs must fulfil, is not certain."""
        out = self._shapes[node.outputs[0]]
        if _broadcasts(node):
            return self._pointwise(node, out)
        if node.geometry.kind is OpKind.COPY and node.op_type == "Concat":
            return self._concatenated(node, out)
        if len(node.inputs) != 1:
            return None
        source, layout = self._shapes[node.inputs[0]], self._layouts.get(node.inputs[0])
        if node.geometry.kind in _CONVOLUTIONS:
            return self._convolved(node, source, layout, out)
        if node.geometry.kind is OpKind.GEMM:
            return self._multiplied(node, source, layout, out)
        rule = _rule(node)
        return rule(source, layout, out) if rule and layout else None

    def _pointwise(self, node: Node, out: tuple[int, ...]) -> _Layout | None:
        """All operands that have channels must have the same ones at the same place, counted from the right."""
        shifts = {name: len(out) - len(self._shapes[name]) for name in node.inputs}
        found = {
            name: _Layout(self._layouts[name].axis + shift, self._layouts[name].parts)
            for name, shift in shifts.items()
            if name in self._layouts
        }
        axes = {layout.axis for layout in found.values()}
        if len(axes) != 1:
            return None
        axis, result = axes.pop(), next(iter(found.values()))
        for name, shift in shifts.items():
            if axis < shift or self._shapes[name][axis - shift] == 1:  # broadcast over the channels
                continue
            if name not in found or not self._classes.link(result, found[name]):
                return None
        return result

    def _concatenated(self, node: Node, out: tuple[int, ...]) -> _Layout | None:
        shapes = [self._shapes[name] for name in node.inputs]
        layouts = [self._layouts.get(name) for name in node.inputs]
        axes = {layout.axis for layout in layouts if layout}
        joined = [axis for axis in range(len(out)) if sum(shape[axis] for shape in shapes) == out[axis]]
        # With a constant among the operands the sizes do not add up along any axis.
        joined = [a for a in joined if all(s[:a] + s[a + 1 :] == out[:a] + out[a + 1 :] for s in shapes)]
        if len(axes) != 1 or not joined:
            return None
        axis = axes.pop()
        if axis in joined:
            parts = [
                layout.parts if layout else ((self._classes.make(shape[axis], whole=True), 1),)
                for layout, shape in zip(layouts, shapes, strict=True)
            ]
            return _Layout(axis, tuple(part for operand in parts for part in operand))
        known = [layout for layout in layouts if layout]
        agree = len(known) == len(layouts) and all(self._classes.link(known[0], other) for other in known)
        return known[0] if agree else None

    def _convolved(
        self, node: Node, source: tuple[int, ...], layout: _Layout | None, out: tuple[int, ...]
    ) -> _Layout | None:
        shape = node.geometry
        certain = (
            len(out) in _IMAGE_RANKS
            and (source[1], out[1]) == (shape.in_channels, shape.out_channels)
            and (layout is None or layout.axis == 1)
            and 0 < _matrix(node, source, out) <= node.weight_elements
        )
        if not certain:
            return None
        if shape.groups == 1:
            return _Layout(1, ((self._classes.make(out[1]), 1),))
        if shape.groups != source[1] or layout is None:
            return None
        # Depthwise: the outputs of a channel, of which there may be several, lie next to each other.
        return _Layout(1, tuple((index, repeat * (out[1] // source[1])) for index, repeat in layout.parts))

    def _multiplied(
        self, node: Node, source: tuple[int, ...], layout: _Layout | None, out: tuple[int, ...]
    ) -> _Layout | None:
        """rows x depth by depth x columns; a square input might be transposed, or be the right factor."""
        shape, last = node.geometry, len(source) - 1
        certain = (
            node.op_type in _PRODUCTS
            and last >= 1
            and source[-1] == shape.in_channels != source[-2]
            and out == (*source[:-1], shape.out_channels)
            and (layout is None or layout.axis == last)
            and _matrix(node, source, out) <= node.weight_elements
        )
        return _Layout(last, ((self._classes.make(out[-1]), 1),)) if certain else None


def _broadcasts(node: Node) -> bool:
    """Whether operands meet element by element, aligned from the right."""
    if node.geometry.kind is OpKind.ELEMENTWISE:
        # A quantizer's scale, where it is computed, is aligned with an axis that the graph does not tell.
        return node.op_type != "RotaryEmbedding" and (node.op_type not in _QUANTIZERS or len(node.inputs) == 1)
    return node.geometry.kind is OpKind.COPY and node.op_type == "Expand"


_Rule = Callable[[tuple[int, ...], _Layout, tuple[int, ...]], _Layout | None]


def _rule(node: Node) -> _Rule | None:
    """How channels pass through an operator of one input that has no matrix of weights."""
    match node.geometry.kind:
        case OpKind.POOL | OpKind.GLOBAL_POOL:
            return _same_images
        case OpKind.NORM if node.op_type in _CHANNEL_NORMS:
            return _same_images
        case OpKind.RESIZE if node.op_type != "GridSample":
            return _same_axis
        case OpKind.COPY if node.op_type in ("Pad", "Slice"):
            return _same_axis
        case OpKind.COPY if node.op_type == "Transpose":
            return _transposed
        case OpKind.VIEW:
            return _viewed
        case OpKind.REDUCE if node.op_type.startswith("Reduce"):
            return _reduced
    return None


def _same_axis(source: tuple[int, ...], layout: _Layout, out: tuple[int, ...]) -> _Layout | None:
    return layout if len(source) == len(out) and source[layout.axis] == out[layout.axis] else None


def _same_images(source: tuple[int, ...], layout: _Layout, out: tuple[int, ...]) -> _Layout | None:
    return _same_axis(source, layout, out) if layout.axis == 1 else None


def _transposed(source: tuple[int, ...], layout: _Layout, out: tuple[int, ...]) -> _Layout | None:
    """The permutation is not known, but a size that occurs once tells where it went."""
    size = source[layout.axis]
    return _Layout(out.index(size), layout.parts) if source.count(size) == out.count(size) == 1 else None


def _viewed(source: tuple[int, ...], layout: _Layout, out: tuple[int, ...]) -> _Layout | None:
    """Views keep the order of elements: channels stay an axis, or merge with axes behind them, never before them."""
    before, size = math.prod(source[: layout.axis]), source[layout.axis]
    for axis, total in enumerate(out):
        if math.prod(out[:axis]) == before and total % size == 0:
            return _Layout(axis, tuple((index, repeat * (total // size)) for index, repeat in layout.parts))
    return None


def _reduced(source: tuple[int, ...], layout: _Layout, out: tuple[int, ...]) -> _Layout | None:
    """The axes are not known: every choice that gives `out` must leave the channels, at the same place."""
    if len(source) == len(out):
        return _same_axis(source, layout, out)
    remaining = [axes for axes in combinations(range(len(source)), len(out)) if tuple(source[a] for a in axes) == out]
    places = {axes.index(layout.axis) if layout.axis in axes else -1 for axes in remaining}
    return _Layout(places.pop(), layout.parts) if len(places) == 1 and -1 not in places else None


def _matrix(node: Node, source: tuple[int, ...], out: tuple[int, ...]) -> int:
    """Elements of the kernel or matrix of a convolution or product, bias excluded (see `hetrl.graph.flops`)."""
    match node.geometry.kind:
        case OpKind.CONV:
            return node.macs // max(math.prod(out), 1) * out[1]
        case OpKind.CONV_TRANSPOSE:
            return node.macs // max(math.prod(source), 1) * source[1]
        case _:
            return node.geometry.in_channels * node.geometry.out_channels


def _shrunk(tensor: Tensor, layout: _Layout | None, kept: Sequence[int]) -> Tensor:
    if layout is None:
        return tensor
    size = sum(kept[index] * repeat for index, repeat in layout.parts)
    shape = (*tensor.shape[: layout.axis], size, *tensor.shape[layout.axis + 1 :])
    return Tensor(tensor.name, shape, tensor.dtype, dtype_bytes(tensor.dtype, math.prod(shape)))


class _Resizer:
    """Gives nodes the geometry and costs that fit the new tensors."""

    def __init__(self, old: dict[str, Tensor], new: dict[str, Tensor], layouts: dict[str, _Layout]) -> None:
        self._old = old
        self._new = new
        self._layouts = layouts

    def resized(self, node: Node) -> Node:
        if all(self._old[name] == self._new[name] for name in (*node.inputs, *node.outputs)):
            return node
        # Only nodes that the tracer understood get here: they have one output, and no groups but depthwise ones.
        shape, out = self._geometry(node), node.outputs[0]
        weighted = node.geometry.kind in _WEIGHTED
        macs = node.macs * _connections(shape) // _connections(node.geometry) if weighted else node.macs
        other_flops = (node.flops - 2 * node.macs) * self._new[out].elements // max(self._old[out].elements, 1)
        elements, size = self._matrix_and_vectors(node, shape) if weighted else self._constants(node)
        return msgspec.structs.replace(
            node,
            geometry=shape,
            macs=macs,
            flops=2 * macs + other_flops,
            input_bytes=sum(self._new[name].bytes for name in node.inputs),
            output_bytes=self._new[out].bytes,
            weight_elements=elements,
            weight_bytes=size,
        )

    def _geometry(self, node: Node) -> Geometry:
        shape, inputs, out = node.geometry, [self._new[name] for name in node.inputs], self._new[node.outputs[0]]
        if shape.kind in _WEIGHTED or shape.kind is OpKind.POOL:
            axis = -1 if shape.kind is OpKind.GEMM else 1
            channels = inputs[0].shape[axis]
            groups = 1 if shape.groups == 1 else channels
            return msgspec.structs.replace(shape, in_channels=channels, out_channels=out.shape[axis], groups=groups)
        # The geometry of all other operators depends on nothing but these shapes.
        operands = tuple(_operand(tensor) for tensor in inputs)
        return geometry(Operator(node.op_type, node.domain, shape.kind, operands, (_operand(out),), Attributes({})))

    def _matrix_and_vectors(self, node: Node, shape: Geometry) -> tuple[int, int]:
        """Elements and bytes of a kernel or matrix, and of what there is per output (bias, scale, zero point)."""
        old, elements, size = node.geometry, node.weight_elements, node.weight_bytes
        matrix = _matrix(node, self._old[node.inputs[0]].shape, self._old[node.outputs[0]].shape)
        resized = matrix * _connections(shape) // _connections(old)
        # The matrix dominates, and a bias is at least as wide: bits per element, rounded down to a power of two.
        bits = 1 << max((8 * size // elements).bit_length() - 1, 0)

        def with_vectors(total: int, before: int, after: int) -> int:
            return after + (total - before) * shape.out_channels // old.out_channels

        return with_vectors(elements, matrix, resized), with_vectors(size, matrix * bits // 8, resized * bits // 8)

    def _constants(self, node: Node) -> tuple[int, int]:
        """Elements and bytes of constants that run along the channels, where they do."""
        elements, size, layout = node.weight_elements, node.weight_bytes, self._layouts.get(node.outputs[0])
        if node.geometry.kind not in (OpKind.NORM, OpKind.ELEMENTWISE) or layout is None:
            return elements, size
        before, after = (tensors[node.outputs[0]].shape[layout.axis] for tensors in (self._old, self._new))
        if elements == 0 or elements % before:
            return elements, size
        return elements * after // before, size * after // before


def _connections(shape: Geometry) -> int:
    return shape.in_channels * shape.out_channels // shape.groups


def _operand(tensor: Tensor) -> Operand:
    return Operand(tensor.name, tensor.shape, tensor.dtype, False, 0)
