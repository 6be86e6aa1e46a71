"""Shapes, types and constants of a whole graph, in one walk over its nodes.

Each node is inferred by itself, with known shapes (and, for small constants, known values) of what it reads, so that an
error can name its node, nothing large is ever copied, and a custom operator stops nothing. All activation shapes being
static, what an exporter computes from `Shape` folds into constants on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path

import msgspec
import onnx
from onnx import numpy_helper

from hetrl.errors import ModelError, UnresolvedShape
from hetrl.graph.declared import Declared, activation, attributes, constant, declared, resolve_inputs, small_values
from hetrl.graph.kinds import keeps_shape, kind_of
from hetrl.graph.model import OpKind
from hetrl.graph.operator import Operand, Operator
from hetrl.graph.single import Array, Opsets, plain_domain, run_reference, shape_values
from hetrl.graph.wiring import captured, label, ordered_nodes

_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_WIDENERS = frozenset({"Cast", "DequantizeLinear"})
_RANDOM = frozenset("RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial".split())


class TypedGraph(msgspec.Struct, frozen=True):
    """What is left to run: operators in topological order, with the graph's own inputs and outputs."""

    operators: tuple[Operator, ...]
    inputs: tuple[Operand, ...]
    outputs: tuple[str, ...]
    warnings: tuple[str, ...]


def type_graph(
    model: onnx.ModelProto, given: dict[str, tuple[int, ...]], where: str, folder: Path | None
) -> TypedGraph:
    """Infer all shapes, fold constants, drop what reaches no output.

    :param given: shapes of inputs by name.
    :param where: the file, for messages.
    :param folder: where external data lies; only small constants are ever read from it.
    :raises ModelError: an operator that contradicts its inputs, or nothing left to run.
    :raises UnresolvedShape: an input or output whose sizes stay unknown.
    """
    nodes = ordered_nodes(model.graph, where)
    inputs, bindings = resolve_inputs(model.graph, given, where)
    walk = _Walk(model, where, folder, inputs, bindings)
    for node in nodes:
        walk.visit(node)
    outputs = tuple(dict.fromkeys(o.name for o in model.graph.output))
    for name in outputs:
        if walk.known[name].constant:
            walk.warnings.append(f"the output {name!r} is constant and left out")
    outputs = tuple(name for name in outputs if not walk.known[name].constant)
    operators = _live(walk.operators, outputs)
    if not operators:
        raise ModelError(f"{where} has no operators: its outputs are inputs or constants")
    return TypedGraph(operators, tuple(inputs), outputs, tuple(dict.fromkeys(walk.warnings)))


def _live(operators: Sequence[Operator], outputs: Sequence[str]) -> tuple[Operator, ...]:
    """Operators that reach an output, without the results that nobody reads (the first one stays, it is the id)."""
    needed = set(outputs)
    kept: list[Operator] = []
    for operator in reversed(operators):
        if not any(result.name in needed for result in operator.results):
            continue
        used = [r for position, r in enumerate(operator.results) if position == 0 or r.name in needed]
        needed |= {operand.name for operand in operator.activations}
        kept.append(msgspec.structs.replace(operator, results=tuple(used)))
    return tuple(reversed(kept))


class _Walk:
    """The state of the walk: every tensor known so far, and the values of the small constants."""

    def __init__(
        self, model: onnx.ModelProto, where: str, folder: Path | None, inputs: list[Operand], bindings: dict[str, int]
    ) -> None:
        graph = model.graph
        self.where = where
        self.folder = folder
        self.opsets = Opsets(tuple(model.opset_import), model.ir_version)
        self.declared = {i.name: declared(i.type, bindings) for i in [*graph.value_info, *graph.output]}
        self.warnings: list[str] = []
        self.operators: list[Operator] = []
        self.known: dict[str, Operand] = {operand.name: operand for operand in inputs}
        self.values: dict[str, Array] = {}
        for tensor in graph.initializer:
            self._add_constant(tensor, tensor.name)
        for sparse in graph.sparse_initializer:
            stored = constant(sparse.values)
            self.known[stored.name] = msgspec.structs.replace(stored, shape=tuple(sparse.dims))

    def visit(self, node: onnx.NodeProto) -> None:
        operands = tuple(self.known[name] if name else None for name in [*node.input, *captured(node)])
        present = [operand for operand in operands if operand is not None]
        standard = self.opsets.knows(node)
        if standard and node.op_type == "Constant":
            self._constant_node(node)
        elif standard and node.op_type in ("Shape", "Size") and present:
            self._set_values(node, [shape_values(node, present[0])])
        elif present and all(o.constant for o in present) and standard and node.op_type not in _CONTROL_FLOW | _RANDOM:
            self._fold(node, present)
        else:
            self._operator(node, operands, present, standard)

    def _operator(
        self, node: onnx.NodeProto, operands: tuple[Operand | None, ...], present: list[Operand], standard: bool
    ) -> None:
        branch = self._taken_branch(node) if standard and node.op_type == "If" else None
        if branch is not None:
            results, kind = branch
        else:
            results = self._infer(node, present) if standard else self._assume(node, present)
            kind = kind_of(node.op_type, operands, results) if standard and not self._trains(node) else OpKind.UNKNOWN
        if kind is OpKind.UNKNOWN:
            self.warnings.append(self._why_unknown(node))
        if kind is OpKind.CONV and len(results[0].shape) == 5:
            self.warnings.append(f"the depth of the 3-D convolution {label(node)} is counted as batch")
        self.known |= {result.name: result for result in results}
        domain = plain_domain(node.domain)
        outputs = tuple(node.output)
        self.operators.append(Operator(node.op_type, domain, kind, operands, results, attributes(node), outputs))

    def _taken_branch(self, node: onnx.NodeProto) -> tuple[tuple[Operand, ...], OpKind] | None:
        """Results of an If whose condition is constant; it is a VIEW if nothing else happens in the branch it takes.

        Exporters write such an If for a squeeze of a tensor whose shape they did not know.
        """
        condition = self.values.get(node.input[0])
        if condition is None:
            return None
        name = "then_branch" if condition.all() else "else_branch"
        graph = next(attribute.g for attribute in node.attribute if attribute.name == name)
        inner = copy(self)
        inner.known, inner.values, inner.operators, inner.warnings = dict(self.known), dict(self.values), [], []
        for tensor in graph.initializer:
            inner._add_constant(tensor, tensor.name)
        for step in graph.node:
            inner.visit(step)
        made = [inner.known[output.name] for output in graph.output]
        results = tuple(activation(name, m.shape, m.dtype) for name, m in zip(node.output, made, strict=True))
        views = all(operator.kind is OpKind.VIEW for operator in inner.operators)
        return results, OpKind.VIEW if views else OpKind.UNKNOWN

    def _trains(self, node: onnx.NodeProto) -> bool:
        """Normalization or dropout in training mode, which no mobile runtime runs."""
        if node.op_type == "Dropout":
            flag = self.values.get(node.input[2]) if len(node.input) > 2 else None
            return flag is not None and bool(flag.any())
        return node.op_type == "BatchNormalization" and attributes(node).integer("training_mode", 0) == 1

    def _why_unknown(self, node: onnx.NodeProto) -> str:
        if node.op_type in _CONTROL_FLOW:
            return f"the operator {label(node)} runs a subgraph, which is taken as one unknown operator"
        if self._trains(node):
            return f"the operator {label(node)} is in training mode and taken as an unknown operator"
        domain = plain_domain(node.domain) or "ai.onnx"
        return f"the operator {label(node)} of the domain {domain!r} is unknown: its cost counts as moving its data"

    def _add_constant(self, tensor: onnx.TensorProto, name: str) -> None:
        self.known[name] = constant(tensor, name)
        values = small_values(tensor, self.folder)
        if values is not None:
            self.values[name] = values
            if values.ndim <= 1 and values.dtype.kind in "iu":
                integers = tuple(int(value) for value in values.reshape(-1))
                self.known[name] = msgspec.structs.replace(self.known[name], values=integers)

    def _set_values(self, node: onnx.NodeProto, arrays: Sequence[Array]) -> None:
        for name, array in zip(node.output, arrays, strict=False):
            if name:
                self._add_constant(numpy_helper.from_array(array, name), name)

    def _constant_node(self, node: onnx.NodeProto) -> None:
        value = next((a for a in node.attribute if a.name == "value"), None)
        if value is not None:
            self._add_constant(value.t, node.output[0])
            return
        try:
            self._set_values(node, run_reference(node, {}))
        except Exception:
            raise ModelError(f"{self.where}: the constant {label(node)} has no value") from None

    def _fold(self, node: onnx.NodeProto, operands: list[Operand]) -> None:
        """Make the results of a node constants: with values where they are small, else with their shapes alone."""
        widens = node.op_type == "DequantizeLinear"  # its result may be too large to look at
        values = [] if widens else self.opsets.evaluate(node, operands, self.values)
        if values:
            self._set_values(node, values)
        else:
            for result in self._infer(node, operands):
                self.known[result.name] = msgspec.structs.replace(result, constant=True, stored_bytes=result.bytes)
        if node.op_type in _WIDENERS:  # stays as small as it is stored
            name, stored = node.output[0], operands[0].stored_bytes
            size = min(stored, self.known[name].stored_bytes)
            self.known[name] = msgspec.structs.replace(self.known[name], stored_bytes=size)

    def _infer(self, node: onnx.NodeProto, operands: list[Operand]) -> tuple[Operand, ...]:
        try:
            found = self.opsets.infer(node, operands, self.values)
        except Exception as error:
            reason = " ".join(str(error).split()).split("ShapeInferenceError]")[-1].strip()
            raise ModelError(f"{self.where}: the node {label(node)} does not fit its inputs: {reason[:200]}") from None
        if not found:  # a few operators, GroupNormalization among them, have no rule
            return self._assume(node, operands)
        results: list[Operand] = []
        for name in filter(None, node.output):
            type_ = _merge(found.get(name), self.declared.get(name))
            if type_ is None and results:  # an optional output that inference has no rule for
                type_ = Declared(results[0].dtype, results[0].shape)
            if type_ is None:
                raise ModelError(f"{self.where}: the output {name!r} of {label(node)} is no tensor of known type")
            if type_.static is None:
                raise UnresolvedShape(
                    f"{self.where}: the shape of {name!r}, made by {label(node)}, depends on the data",
                    "hetrl needs models whose shapes are all known in advance",
                )
            results.append(activation(name, type_.static, type_.dtype))
        return tuple(results)

    def _assume(self, node: onnx.NodeProto, operands: list[Operand]) -> tuple[Operand, ...]:
        """Results of an operator that onnx does not know or has no rule for: as declared, else like its first input."""
        first = next((o for o in operands if not o.constant), operands[0] if operands else None)
        results = []
        for name in filter(None, node.output):
            told = self.declared.get(name)
            if told is not None and told.static is not None:
                results.append(activation(name, told.static, told.dtype))
            elif first is not None:
                results.append(activation(name, first.shape, told.dtype if told else first.dtype))
                if not keeps_shape(node.op_type):
                    self.warnings.append(f"the shape of {name!r} is not declared; that of {first.name!r} is assumed")
            else:
                raise UnresolvedShape(f"{self.where}: nothing tells the shape of {name!r}, made by {label(node)}")
        return tuple(results)


def _merge(inferred: Declared | None, told: Declared | None) -> Declared | None:
    """Inference wins; what the file declares fills in sizes that depend on data."""
    if inferred is None or told is None:
        return inferred or told
    if inferred.static is not None or told.static is None:
        return inferred
    contradicts = inferred.shape is not None and (
        len(inferred.shape) != len(told.static)
        or any(size not in (None, other) for size, other in zip(inferred.shape, told.static, strict=True))
    )
    return inferred if contradicts else Declared(inferred.dtype, told.shape)
