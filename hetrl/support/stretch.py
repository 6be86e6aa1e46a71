"""A network with one branch per processor, as NN-Stretch makes them (Wei et al., MobiSys 2023).

NN-Stretch's code is not public; this is a reading of the paper's description. Between two *merge points* every branch
has the original's layers at a share of the channels: it reads its slice of the merged tensor, and a concatenation joins
the branches again. Weights shrink accordingly, so a stretched network must be trained anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hetrl.errors import UsageError
from hetrl.graph.model import OperatorGraph
from hetrl.graph.reader import graph_from_model
from hetrl.splits import channel_bounds, every_part_works
from hetrl.zoo.blueprint import Blueprint, Weight, absent

BRANCH = "@"  # in a tensor's name, before the number of its branch
_ELEMENTWISE = frozenset({"Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSwish", "Tanh", "Add", "Mul"})
_PER_CHANNEL = frozenset({"BatchNormalization", "MaxPool", "AveragePool"})


class Merge(StrEnum):
    """Where branches meet."""

    NETWORK = "network"  # once, behind the last convolution
    STAGE = "stage"  # wherever the resolution changes
    BLOCK = "block"  # behind every fusion group that all paths pass: a residual block, a pool
    OPERATOR = "operator"  # behind every convolution


class Read(StrEnum):
    """How a branch gets its channels of a merged tensor."""

    SLICE = "slice"  # a Slice per branch
    SPLIT = "split"  # one Split for all of them


@dataclass(frozen=True)
class Region:
    """Operators between two merge points: `nodes` index the graph's, topological; one tensor enters, one leaves."""

    entry: str
    exit: str
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Stretched:
    """A stretched network, and how many merge points it has."""

    blueprint: Blueprint
    merges: int

    def graph(self) -> OperatorGraph:
        return graph_from_model(self.blueprint.model, name=str(self.blueprint.model.graph.name))


def regions(graph: OperatorGraph, merge: Merge) -> tuple[Region, ...]:
    """What lies between the merge points, in order; the part behind the last one (pool, classifier) is left out."""
    if merge is Merge.OPERATOR:
        return tuple(_convolutions(graph))
    cuts = _cuts(graph)
    height = {tensor: graph.tensor_by_name[tensor].shape[2] for tensor, _ in cuts}
    if merge is Merge.NETWORK:
        chosen = cuts[-1:]
    elif merge is Merge.STAGE:
        chosen = [cut for cut, after in zip(cuts, [*cuts[1:], None], strict=True)
                  if after is None or height[after[0]] != height[cut[0]]]  # fmt: skip
    else:
        exits = {tensor for group in graph.groups for tensor in group.outputs}
        chosen = [cut for cut in cuts if cut[0] in exits]
    found, entry, start = [], graph.inputs[0], 0
    for tensor, last in chosen:
        found.append(Region(entry, tensor, tuple(range(start, last + 1))))
        entry, start = tensor, last + 1
    return tuple(found)


def _cuts(graph: OperatorGraph) -> list[tuple[str, int]]:
    """Image tensors that every path passes, each with the node that makes it; up to the last convolution's resolution.

    :raises UsageError: several inputs, or no such tensor.
    """
    last_read = {tensor: i for i, node in enumerate(graph.nodes) for tensor in node.inputs}
    last_read.update((tensor, len(graph.nodes)) for tensor in graph.outputs)
    convs = [i for i, node in enumerate(graph.nodes) if node.op_type == "Conv"]
    live: set[str] = set(graph.inputs)
    cuts = []
    for i, node in enumerate(graph.nodes):
        live = {tensor for tensor in live | set(node.outputs) if last_read.get(tensor, -1) > i}
        shape = graph.tensor_by_name[node.outputs[0]].shape
        if live == {node.outputs[0]} and len(shape) == 4 and shape[2] > 1:
            cuts.append((node.outputs[0], i))
    if len(graph.inputs) != 1 or not convs or not cuts or cuts[-1][1] < convs[-1]:
        raise UsageError(f"{graph.name} has no place where branches could meet", "stretch a network of convolutions")
    return cuts


def _convolutions(graph: OperatorGraph) -> list[Region]:
    """Every convolution with the normalization and activation behind it."""
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        for tensor in node.inputs:
            readers.setdefault(tensor, []).append(i)
    found = []
    for i, node in enumerate(graph.nodes):
        if node.op_type != "Conv":
            continue
        members, out = [i], node.outputs[0]
        while len(readers.get(out, [])) == 1 and graph.nodes[readers[out][0]].op_type in ("BatchNormalization", "Relu"):
            members.append(readers[out][0])
            out = graph.nodes[members[-1]].outputs[0]
        found.append(Region(node.inputs[0], out, tuple(members)))
    return found


def stretch(
    network: Blueprint,
    shares_pct: Sequence[int],
    merge: Merge,
    *,
    read: Read = Read.SLICE,
    int8: frozenset[int] = frozenset(),
) -> Stretched:
    """The network with one branch per share.

    The network's input is read whole by every branch. A branch in `int8` reads through a QuantizeLinear and a
    DequantizeLinear, which stand for the runtime's conversions before and behind it.

    :param shares_pct: each branch's share of the channels, in per cent.
    :raises UsageError: an operator that has no channels of its own per branch, or a branch without channels.
    """
    name = str(network.model.graph.name)
    graph = graph_from_model(network.model, name=name)
    builder = _Rewriter(network, graph, tuple(shares_pct), read, int8)
    found = regions(graph, merge)
    region_of = {member: region for region in found for member in region.nodes}
    for i in range(len(graph.nodes)):
        region = region_of.get(i)
        if region is None:
            builder.copy(i)
        elif i == region.nodes[-1]:
            builder.branches(region)
    return Stretched(builder.finish(), len(found))


class _Rewriter:
    """Writes the stretched network operator by operator."""

    def __init__(
        self, network: Blueprint, graph: OperatorGraph, shares: tuple[int, ...], read: Read, int8: frozenset[int]
    ) -> None:
        self._network, self._graph, self._shares, self._read, self._int8 = network, graph, shares, read, int8
        self._source = {str(node.output[0]): node for node in network.model.graph.node}
        self._weight = {weight.name: weight for weight in network.weights}
        self._nodes: list[onnx.NodeProto] = [n for n in network.model.graph.node if n.op_type == "Constant"]
        self._weights: dict[str, Weight] = {}

    def copy(self, index: int) -> None:
        """An operator outside every region."""
        node = self._source[self._graph.nodes[index].id]
        self._nodes.append(node)
        self._weights.update({w: self._weight[w] for w in node.input if w in self._weight})

    def branches(self, region: Region) -> None:
        """Slices, every branch's operators, and the concatenation."""
        count = len(self._shares)
        entries = self._entries(region)
        for branch in range(count):
            names = {region.entry: entries[branch]}
            if branch in self._int8:
                names[region.entry] = self._converted(entries[branch])
            for index in region.nodes:
                self._branch_node(index, branch, names, whole=region.entry in self._graph.inputs)
        parts = [f"{region.exit}{BRANCH}{branch}" for branch in range(count)]
        self._nodes.append(helper.make_node("Concat", parts, [region.exit], name=region.exit, axis=1))

    def _bounds(self, tensor: str) -> tuple[int, ...]:
        bounds = channel_bounds(self._graph.tensor_by_name[tensor].shape[1], self._shares)
        if not every_part_works(bounds):
            raise UsageError(f"{tensor} has too few channels for {len(self._shares)} branches", "use fewer branches")
        return bounds

    def _entries(self, region: Region) -> list[str]:
        if region.entry in self._graph.inputs:
            return [region.entry] * len(self._shares)
        bounds, where = self._bounds(region.entry), f"{region.exit}.in"
        names = [f"{where}{BRANCH}{branch}" for branch in range(len(self._shares))]
        if self._read is Read.SPLIT:
            sizes = self._constant(f"{where}.sizes", np.diff(bounds))
            self._nodes.append(helper.make_node("Split", [region.entry, sizes], names, name=where, axis=1))
            return names
        axis = self._constant(f"{where}.axis", np.array([1]))
        for name, low, high in zip(names, bounds[:-1], bounds[1:], strict=True):
            start, end = (self._constant(f"{name}.{key}", np.array([v])) for key, v in (("start", low), ("end", high)))
            self._nodes.append(helper.make_node("Slice", [region.entry, start, end, axis], [name], name=name))
        return names

    def _converted(self, tensor: str) -> str:
        """int8 and back at a scale that any training would replace."""
        scale = self._constant(f"{tensor}.scale", np.float32(0.05))
        zero = self._constant(f"{tensor}.zero", np.int8(0))
        quantized, back = f"{tensor}.int8", f"{tensor}.float"
        self._nodes.append(helper.make_node("QuantizeLinear", [tensor, scale, zero], [quantized], name=quantized))
        self._nodes.append(helper.make_node("DequantizeLinear", [quantized, scale, zero], [back], name=back))
        return back

    def _branch_node(self, index: int, branch: int, names: dict[str, str], *, whole: bool) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(self._source[self._graph.nodes[index].id])
        out = str(node.output[0])
        if node.op_type not in _ELEMENTWISE | _PER_CHANNEL | {"Conv"}:
            raise UsageError(f"{out} ({node.op_type}) cannot be stretched", "merge before it")
        low, high = self._bounds(out)[branch : branch + 2]
        data = str(node.input[0])
        for position, operand in enumerate(node.input):
            if operand in self._weight:
                node.input[position] = self._narrow(node, self._weight[operand], branch, data, high - low, whole)
            else:
                node.input[position] = names.get(operand, operand)
        names[out] = node.output[0] = f"{out}{BRANCH}{branch}"
        node.name = node.output[0]
        self._nodes.append(node)

    def _narrow(self, node: onnx.NodeProto, weight: Weight, branch: int, data: str, channels: int, whole: bool) -> str:
        """A branch's share of a weight: fewer outputs, and fewer inputs too unless it reads the network's input."""
        shape = (channels, *weight.shape[1:])
        if node.op_type == "Conv" and len(weight.shape) == 4:
            group = next(a for a in node.attribute if a.name == "group")
            if group.i > 1 and group.i != self._graph.tensor_by_name[data].shape[1]:
                raise UsageError(f"{node.output[0]} has groups of channels, which branches cannot share", "")
            if group.i > 1:
                group.i = channels
            elif not (whole and data in self._graph.inputs):
                low, high = self._bounds(data)[branch : branch + 2]
                shape = (channels, high - low, *weight.shape[2:])
        name = f"{weight.name}{BRANCH}{branch}"
        self._weights[name] = Weight(name, shape, weight.fill, weight.gain)
        return name

    def _constant(self, name: str, value: np.generic | np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
        tensor = numpy_helper.from_array(np.asarray(value))
        self._nodes.append(helper.make_node("Constant", [], [name], name=name, value=tensor))
        return name

    def finish(self) -> Blueprint:
        old = self._network.model.graph
        weights = tuple(self._weights.values())
        graph = helper.make_graph(self._nodes, old.name, old.input, old.output, [absent(w) for w in weights])
        model = helper.make_model(
            graph, opset_imports=self._network.model.opset_import, ir_version=self._network.model.ir_version
        )
        return Blueprint(model, weights)


def parameters(network: Blueprint) -> int:
    """Elements of all weights."""
    return sum(math.prod(weight.shape) for weight in network.weights)
