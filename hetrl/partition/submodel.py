"""One part of a segment as an ONNX model of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx
from onnx import TensorProto, helper

from hetrl.device_bridge.runner.job import Port
from hetrl.graph import Node, OperatorGraph, OpKind
from hetrl.graph.declared import attributes, dtype_code
from hetrl.graph.single import Array, plain_domain
from hetrl.graph.wiring import captured
from hetrl.partition.constant_axes import constant_axis
from hetrl.partition.constants import Constants
from hetrl.partition.shares import Cutter, Range, Share, raw_rows

_LEAST_IR = 4  # before it, every initializer had to be an input as well
_SLICE_BY_INPUTS = 10  # the opset since which Slice takes its bounds as inputs


@dataclass(frozen=True)
class Submodel:
    """A model with external weights, and what its inputs and outputs are in the whole model.

    :param constants: knows the numbers of the model's initializers.
    """

    model: onnx.ModelProto
    reads: tuple[Port, ...]
    writes: tuple[Port, ...]
    constants: Constants

    @cached_property
    def files(self) -> tuple[str, ...]:
        """The blobs that its weights are in."""
        external = [t for t in self.model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        return tuple(dict.fromkeys(e.value for t in external for e in t.external_data if e.key == "location"))

    def weights(self) -> dict[str, Array]:
        """The numbers of the initializers that the model names without holding them."""
        external = [t for t in self.model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        return {tensor.name: self.constants.values(tensor) for tensor in external}


@dataclass(frozen=True)
class Flat:
    """The model that is cut: one ONNX node for each of the graph's operators, in the same order.

    :param fronts: by operator, the node in front of its own where low rank has made two of one (`Node.front`).
    """

    graph: OperatorGraph
    nodes: tuple[onnx.NodeProto, ...]
    constants: Constants
    opsets: tuple[onnx.OperatorSetIdProto, ...]
    ir_version: int
    fronts: Mapping[int, onnx.NodeProto]

    @property
    def opset(self) -> int:
        return next((o.version for o in self.opsets if plain_domain(o.domain) == ""), _SLICE_BY_INPUTS)


def submodel(flat: Flat, nodes: Sequence[int], share: Share, cutter: Cutter | None = None) -> Submodel:
    """The operators `nodes` (ascending), as far as `share` needs them; without a cutter all of them."""
    return _Writer(flat, share, cutter).write(nodes)


class _Writer:
    def __init__(self, flat: Flat, share: Share, cutter: Cutter | None) -> None:
        self._flat, self._share, self._cutter = flat, share, cutter
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._inputs: dict[str, Range] = {}
        self._made: set[str] = set()  # slices, and dequantized constants

    def write(self, nodes: Sequence[int]) -> Submodel:
        flat, share = self._flat, self._share
        made = {name for n in nodes for name in flat.graph.nodes[n].outputs}
        for n in nodes:
            node, proto = flat.graph.nodes[n], flat.nodes[n]
            if node.outputs[0] not in share.ranges:
                continue
            self._inputs |= {name: share.ranges[name] for name in node.inputs if name not in made}
            whole = self._cutter is None or self._cutter.whole(node.outputs[0], share.ranges[node.outputs[0]])
            front = flat.fronts.get(n)
            if front is not None:
                self._nodes.append(self._as_it_is(node, front))
            between = front.output[0] if front is not None else ""
            self._nodes.append(self._as_it_is(node, proto, between) if whole else self._cut(node, proto))
        reads = tuple(self._port(name, name, range_) for name, range_ in self._inputs.items())
        writes = tuple(self._port(self._range(name, range_), name, range_) for name, range_ in share.writes.items())
        graph = helper.make_graph(
            self._nodes,
            flat.graph.name or "part",
            [self._info(port) for port in reads],
            [self._info(port) for port in writes],
            list(self._initializers.values()),
        )
        ir_version = max(flat.ir_version, _LEAST_IR)
        model = helper.make_model(graph, opset_imports=flat.opsets, ir_version=ir_version, producer_name="hetrl")
        return Submodel(model, reads, writes, flat.constants)

    def _as_it_is(self, node: Node, proto: onnx.NodeProto, between: str = "") -> onnx.NodeProto:
        """:param between: an input that the node in front of it makes."""
        new = onnx.NodeProto()
        new.CopyFrom(proto)
        for name in captured(proto):
            self._constant(name)
        for position, name in enumerate(proto.input):
            if name in node.inputs:
                new.input[position] = self._range(name, self._whole(name))
            elif name and name != between:
                self._constant(name)
        return new

    def _cut(self, node: Node, proto: onnx.NodeProto) -> onnx.NodeProto:
        cutter = self._cutter
        assert cutter is not None
        made = self._share.ranges[node.outputs[0]]
        if node.geometry.kind is OpKind.VIEW:  # it changes nothing, but a Reshape would name the whole's sizes
            part = self._range(node.inputs[0], cutter.read(node, node.inputs[0], made))
            return helper.make_node("Identity", [part], [node.outputs[0]])
        new = onnx.NodeProto()
        new.CopyFrom(proto)
        del new.output[1:]  # what nobody reads
        rank = len(self._flat.graph.tensor_by_name[node.outputs[0]].shape)
        for position, name in enumerate(proto.input):
            if name in node.inputs:
                new.input[position] = self._range(name, cutter.read(node, name, made))
            elif name:
                shape = self._flat.constants.shape(name)
                axis = constant_axis(proto, position, shape, cutter.axis, rank, by_channel=cutter.by_channel)
                cut = axis is not None and shape[axis] == cutter.size(node.outputs[0]) > 1
                new.input[position] = self._part(name, axis or 0, made) if cut else self._constant(name)
        if cutter.by_channel and node.geometry.depthwise:
            first, last = cutter.read(node, node.inputs[0], made)
            _set(new, "group", last - first)
        if not cutter.by_channel and node.geometry.kind in (OpKind.CONV, OpKind.POOL):
            _set_pads(new, node, made, cutter.read(node, node.inputs[0], made))
        return new

    def _whole(self, name: str) -> Range:
        if self._cutter is None:
            return self._share.ranges[name]
        return 0, self._cutter.size(name)

    def _range(self, name: str, range_: Range) -> str:
        """The name of a range of a tensor that is at hand, sliced from what is if that is more."""
        have = self._share.ranges[name]
        if have == range_:
            return name
        new_name = f"{name}[{range_[0]}:{range_[1]}]"
        if new_name not in self._made:
            self._made.add(new_name)
            self._slice(name, new_name, range_[0] - have[0], range_[1] - have[0])
        return new_name

    def _slice(self, name: str, new_name: str, start: int, stop: int) -> None:
        node, bounds = slice_node(name, new_name, self._share.axis, start, stop, self._flat.opset)
        self._initializers |= {tensor.name: tensor for tensor in bounds}
        self._nodes.append(node)

    def _constant(self, name: str) -> str:
        constants = self._flat.constants
        recipe = constants.recipe(name)
        if recipe is not None:
            return self._dequantized(recipe, name, [self._constant(source) for source in recipe.input])
        if name in constants and name not in self._initializers:
            self._initializers[name] = constants.whole(name)
        return name

    def _part(self, name: str, axis: int, range_: Range) -> str:
        constants = self._flat.constants
        recipe = constants.recipe(name)
        if recipe is None:
            tensor = constants.part(name, axis, *range_)
            self._initializers[tensor.name] = tensor
            return str(tensor.name)
        narrow, *factors = recipe.input
        by_axis = attributes(recipe).integer("axis", 1) % len(constants.shape(narrow)) == axis
        sources = [self._part(narrow, axis, range_)]
        for factor in factors:
            cut = by_axis and factor and math.prod(constants.shape(factor)) > 1
            sources.append(self._part(factor, 0, range_) if cut else self._constant(factor))
        return self._dequantized(recipe, f"{name}[{axis}:{range_[0]}:{range_[1]}]", sources)

    def _dequantized(self, recipe: onnx.NodeProto, name: str, sources: Sequence[str]) -> str:
        if name not in self._made:
            self._made.add(name)
            new = onnx.NodeProto()
            new.CopyFrom(recipe)
            del new.input[:], new.output[:]
            new.input.extend(sources)
            new.output.append(name)
            self._nodes.append(new)
        return name

    def _port(self, name: str, tensor: str, range_: Range) -> Port:
        if self._cutter is None or self._cutter.whole(tensor, range_):
            return Port(name, tensor)
        return Port(name, tensor, self._share.axis, *range_)

    def _info(self, port: Port) -> onnx.ValueInfoProto:
        tensor = self._flat.graph.tensor_by_name[port.tensor]
        shape = list(tensor.shape)
        if port.axis is not None:
            shape[port.axis] = port.stop - port.start
        return helper.make_tensor_value_info(port.name, dtype_code(tensor.dtype), shape)


def slice_node(
    name: str, new_name: str, axis: int, start: int, stop: int, opset: int
) -> tuple[onnx.NodeProto, list[TensorProto]]:
    """The operator that makes [start, stop) along an axis of a tensor, and the constants that it reads."""
    if opset < _SLICE_BY_INPUTS:
        return helper.make_node("Slice", [name], [new_name], starts=[start], ends=[stop], axes=[axis]), []
    # The step is given too: OpenVINO makes one of the input's shape where it is not, which HETERO then cuts off.
    numbers = (("start", start), ("stop", stop), ("axis", axis), ("step", 1))
    bounds = {f"{new_name}.{key}": v for key, v in numbers}
    constants = [helper.make_tensor(key, TensorProto.INT64, (1,), [value]) for key, value in bounds.items()]
    return helper.make_node("Slice", [name, *bounds], [new_name]), constants


def _set(node: onnx.NodeProto, name: str, value: int | str | list[int]) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _set_pads(node: onnx.NodeProto, info: Node, made: Range, read: Range) -> None:
    """Pads of a convolution or pool that makes the rows `made` from the rows `read`: padding at the borders alone."""
    g, given = info.geometry, attributes(node)
    low, high = raw_rows(g, made)
    top, bottom = max(0, read[0] - low), max(0, high - read[1])
    left, right = g.pad_left, g.pad_right
    if given.text("auto_pad", "NOTSET") == "NOTSET":
        # What a pool that rounds up reads beyond its padding does not count as padding: ceil_mode stays instead.
        pads = given.integers("pads", (0, 0, 0, 0))
        left, right, bottom = pads[1], pads[3], min(bottom, pads[2])
    else:
        _set(node, "auto_pad", "NOTSET")
    _set(node, "pads", [top, left, bottom, right])
