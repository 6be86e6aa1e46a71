"""Taking channels out of a model: constants lose places, sizes and bounds that the model states follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from hetrl.compress import bounds
from hetrl.compress.constants import Array, Constants
from hetrl.compress.open_sizes import open_sizes
from hetrl.graph import OperatorGraph
from hetrl.graph.channels import Axes, ChannelAxis, Traced
from hetrl.graph.declared import dtype_code
from hetrl.graph.operator import Operand
from hetrl.graph.wiring import captured

Mask = NDArray[np.bool_]


def without(model: onnx.ModelProto, graph: OperatorGraph, stays: Mask) -> onnx.ModelProto:
    """The model without the channels that do not stay. Nodes keep their names and outputs.

    :param model: complete, functions inlined; not changed.
    :param graph: of that model.
    :param stays: for each channel of `graph.channels`.
    """
    return _Surgery(model, graph, stays).run()


def places(axis: ChannelAxis, stays: Mask) -> Mask:
    """Which places of an axis stay."""
    return np.where(axis.atoms < 0, True, stays[axis.atoms])


class _Surgery:
    def __init__(self, model: onnx.ModelProto, graph: OperatorGraph, stays: Mask) -> None:
        self._model = model
        self._graph = graph
        self._stays = stays
        self._constants = Constants(model, {tensor.name: tensor.shape for tensor in graph.tensors})
        self._names = {name for node in model.graph.node for name in (*node.input, *node.output)}
        self._names |= set(self._constants.initializers)
        self._nodes = {_id(node): onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node}
        self._added: dict[str, onnx.TensorProto] = {}
        self._before: dict[str, list[onnx.NodeProto]] = {}  # new nodes by the output in front of whose node they go
        self._variants: dict[tuple[str, bytes], str] = {}
        self._open = bool(open_sizes(model))
        self._changed: set[str] = set()  # activations of another shape

    def run(self) -> onnx.ModelProto:
        traced = self._graph.channels.traced
        for step in traced:
            for result, axes in zip(step.operator.results, step.results, strict=True):
                if any(self._loses(axis) for axis in axes):
                    self._changed.add(result.name)
        for step in traced:
            self._operate(step)
        self._rename()
        return self._assembled()

    def _operate(self, step: Traced) -> None:
        node = self._nodes[step.operator.id]
        for position, operand in enumerate(step.operator.operands[: len(node.input)]):
            if operand is None or not operand.constant:
                continue
            axes = step.operands.get(position, ())
            if any(self._loses(axis) for axis in axes) and not bounds.holds_indices(step.operator, position):
                node.input[position] = self._variant(operand, axes)
            elif self._constants.depends_on(operand.name, self._changed):
                node.input[position] = self._constant(operand.name, self._numbers(operand))
        for attribute in node.attribute:
            if attribute.name in step.counts:
                attribute.i = int(places(step.counts[attribute.name], self._stays).sum())
        if any(self._loses(axis) for found in (*step.operands.values(), *step.results) for axis in found):
            for stated in bounds.stated(step, self._stays, self._version()):
                self._state(node, self._opened(step, stated))

    def _opened(self, step: Traced, stated: bounds.Stated) -> bounds.Stated:
        """A shape that was computed from that of an input of open batch stays open in its first axis."""
        shape = step.operator.operand(1)
        maker = self._constants.producers.get(shape.name) if shape is not None else None
        computed = maker is not None and maker.op_type != "Constant"
        if not (self._open and computed and step.operator.op_type == "Reshape") or -1 in stated.values:
            return stated
        return msgspec.structs.replace(stated, values=(-1, *stated.values[1:]))

    def _state(self, node: onnx.NodeProto, stated: bounds.Stated) -> None:
        """Write integers where the operator reads them."""
        for index, attribute in reversed(list(enumerate(node.attribute))):
            if attribute.name in (stated.name, *stated.instead_of):
                del node.attribute[index]
        if stated.position is None:
            node.attribute.append(onnx.helper.make_attribute(stated.name, stated.values))
            return
        while len(node.input) <= stated.position:
            node.input.append("")
        array = np.array(stated.values, _numpy_type(stated.dtype))
        array = array.reshape(()) if stated.scalar else array
        node.input[stated.position] = self._constant(f"{_id(node)}.{stated.name}", array)

    def _variant(self, operand: Operand, axes: Axes) -> str:
        """The name of what is left of a constant."""
        masks = [None if axis is None else places(axis, self._stays) for axis in axes]
        key = (operand.name, b"|".join(b"" if mask is None else np.packbits(mask).tobytes() for mask in masks))
        if key not in self._variants:
            self._variants[key] = self._dequantized(operand.name, masks) or self._constant(
                operand.name, _kept(self._numbers(operand), masks)
            )
        return self._variants[key]

    def _dequantized(self, name: str, masks: Sequence[Mask | None]) -> str | None:
        """A weight that is stored narrow stays so: what it is made of loses places; None where it is none."""
        node = self._constants.producers.get(name)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        values = [self._constants.value(source) if source else None for source in node.input]
        if any(array is not None and array.size > 1 and array.ndim > 1 for array in values[1:]):
            return None
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        for position, array in enumerate(values):
            if array is None or (position > 0 and array.size == 1):
                continue
            kept = _kept(array, masks) if position == 0 else _kept(array, [masks[axis % len(masks)]])
            copy.input[position] = self._constant(node.input[position], kept)
        copy.output[0] = self._unused(name)
        copy.name = copy.output[0]
        self._before.setdefault(_id(node), []).append(copy)
        return str(copy.output[0])

    def _numbers(self, operand: Operand) -> Array:
        if operand.values is not None and operand.name not in self._constants.initializers:
            return np.array(operand.values, _numpy_type(operand.dtype)).reshape(operand.shape)
        return self._constants.value(operand.name)

    def _constant(self, name: str, array: Array) -> str:
        unused = self._unused(name)
        self._added[unused] = numpy_helper.from_array(np.ascontiguousarray(array), unused)
        return unused

    def _unused(self, name: str) -> str:
        number, found = 0, name
        while found in self._names:
            number += 1
            found = f"{name}.kept{number if number > 1 else ''}"
        self._names.add(found)
        return found

    def _rename(self) -> None:
        """A constant whose whole is read no more gives its name to what is left of it, if that is one."""
        whole = set(_read(self._nodes.values())) | {output.name for output in self._model.graph.output}
        found: dict[str, list[str]] = {}
        for (name, _), variant in self._variants.items():
            found.setdefault(name, []).append(variant)
        names = {
            variants[0]: name
            for name, variants in found.items()
            if name not in whole and len(variants) == 1 and name in self._constants.initializers
        }
        for node in self._nodes.values():
            for position, source in enumerate(node.input):
                node.input[position] = names.get(source, source)
        for variant, name in names.items():
            self._added[name] = self._added.pop(variant)
            self._added[name].name = name

    def _assembled(self) -> onnx.ModelProto:
        old, result = self._model.graph, onnx.ModelProto()
        for part in self._model.DESCRIPTOR.fields:
            if part.name != "graph" and (part.is_repeated or self._model.HasField(part.name)):
                _copy_field(self._model, result, part.name)
        graph = result.graph
        graph.name, graph.doc_string = old.name, old.doc_string
        nodes: list[onnx.NodeProto] = []
        for node in old.node:
            nodes += [*self._before.get(_id(node), []), self._nodes[_id(node)]]
        graph.node.extend(self._alive(nodes))
        needed = set(_read(graph.node)) | {output.name for output in old.output}
        for tensor in old.initializer:
            if tensor.name in needed:
                graph.initializer.add().CopyFrom(self._added.pop(tensor.name, tensor))
        graph.initializer.extend(tensor for name, tensor in self._added.items() if name in needed)
        graph.sparse_initializer.extend(old.sparse_initializer)
        names = set(self._constants.initializers)
        graph.input.extend(info for info in old.input if info.name not in names)
        graph.output.extend(old.output)
        return result

    def _alive(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Without what computed constants that nobody reads now."""
        operators = {node.id for node in self._graph.nodes}
        needed = {output.name for output in self._model.graph.output}
        kept = []
        for node in reversed(nodes):
            if _id(node) in operators or any(name in needed for name in node.output):
                kept.append(node)
                needed |= set(_read([node]))
        return kept[::-1]

    def _loses(self, axis: ChannelAxis | None) -> bool:
        return axis is not None and not bool(places(axis, self._stays).all())

    def _version(self) -> int:
        domains = {opset.domain: opset.version for opset in self._model.opset_import}
        return int(domains.get("", domains.get("ai.onnx", 1)))


def _id(node: onnx.NodeProto) -> str:
    return next(str(name) for name in node.output if name)


def _numpy_type(name: str) -> np.dtype[np.generic]:
    """numpy's type of that name."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype_code(name)))


def _kept(array: Array, masks: Iterable[Mask | None]) -> Array:
    for axis, mask in enumerate(masks):
        if mask is not None and not mask.all():
            array = np.compress(mask, array, axis)
    return array


def _read(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    for node in nodes:
        yield from (name for name in (*node.input, *captured(node)) if name)


def _copy_field(source: onnx.ModelProto, target: onnx.ModelProto, name: str) -> None:
    value = getattr(source, name)
    if isinstance(value, int | str | bytes):
        setattr(target, name, value)
    else:
        getattr(target, name).extend(value)
