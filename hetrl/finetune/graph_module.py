"""A complete ONNX model as a torch module that computes its nodes one after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from hetrl.errors import ModelError
from hetrl.finetune.batching import SampleShapes
from hetrl.finetune.node import Array, Branch, Call, Node, Result
from hetrl.finetune.operators.registry import OPERATORS
from hetrl.finetune.operators.shapes import single, tensor
from hetrl.graph.single import plain_domain
from hetrl.graph.wiring import constant_names, ordered_nodes

OLDEST_OPSET = 7  # before it, broadcasting was an attribute


class GraphModule(nn.Module):
    """The model's inputs to its outputs, by position.

    Initializers keep their names: the trainable ones as parameters, all others as buffers. Half precision is computed
    in single precision. In training mode dropout drops; BatchNormalization uses the statistics of the batch, and
    updates the running ones, only if `batch_statistics` is set as well.

    :param trainable: names of float initializers.
    :param statistics: names of initializers that training may change though no gradient reaches them.
    :raises ModelError: operators that are not there, all of them at once; a model that is older than opset 7.
    """

    def __init__(self, model: onnx.ModelProto, trainable: Collection[str], statistics: Collection[str]) -> None:
        super().__init__()
        graph = model.graph
        opset = next((o.version for o in model.opset_import if not plain_domain(o.domain)), 0)
        if opset < OLDEST_OPSET:
            raise ModelError(f"training needs a model of opset {OLDEST_OPSET} or later, this one has {opset}")
        self._nodes = tuple(Node(proto, opset) for proto in ordered_nodes(graph, "the model"))
        _require_operators(self._nodes)
        constants = constant_names(graph)
        self.input_names = tuple(i.name for i in graph.input if i.name not in constants)
        self.output_names = tuple(o.name for o in graph.output)
        self.batch_statistics = True
        for stored in graph.initializer:
            value = tensor(numpy_helper.to_array(stored))
            # Names of initializers have dots, which `register_parameter` takes for paths of submodules.
            if stored.name in trainable:
                self._parameters[stored.name] = nn.Parameter(value)
            else:
                self._buffers[stored.name] = value
        self._folded: dict[str, Tensor] = {}
        self._fold(set(self._buffers) - set(statistics))
        self._left = tuple(node for node in self._nodes if not all(o in self._folded for o in node.outputs if o))
        self._last_reads = _last_reads(self._left, keep=self.output_names)
        self._shapes = SampleShapes()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """:raises ModelError: a node that does not fit its inputs."""
        values = {name: single(value) for name, value in zip(self.input_names, inputs, strict=True)}
        for index, (node, done) in enumerate(zip(self._left, self._last_reads, strict=True)):
            call = Call(node, self._operands(node, values), self.training, self.training and self.batch_statistics)
            batched = self._shapes.batched(index, call)
            result = self._compute(call, values) if batched is None else batched
            self._shapes.record(index, call, result)
            values.update(_named(node, result))
            for name in done:
                values.pop(name, None)
        return tuple(self._value(name, values) for name in self.output_names)

    def learn_shapes(self, *one_sample: Tensor) -> None:
        """Note the shapes that one sample has, so that several fit through shapes that are written in the graph."""
        self._shapes = SampleShapes(recording=True)
        training = self.training
        with torch.no_grad():
            self.eval()(*one_sample)
        self.train(training)
        self._shapes.recording = False

    def arrays(self, names: Iterable[str]) -> dict[str, Array]:
        """Parameters and buffers by name."""
        values = {**dict(self.named_buffers()), **dict(self.named_parameters())}
        return {name: values[name].detach().numpy().copy() for name in names}

    def _fold(self, constant: set[str]) -> None:
        """Compute once what follows from constants alone."""
        with torch.no_grad():
            for node in self._nodes:
                reads = [name for name in (*node.inputs, *node.captured) if name]
                if all(name in constant for name in reads) and node.op_type != "Dropout":
                    call = Call(node, self._operands(node, self._folded))
                    self._folded.update(_named(node, self._compute(call, self._folded)))
                    constant.update(node.outputs)

    def _operands(self, node: Node, values: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
        return tuple(self._value(name, values) if name else None for name in node.inputs)

    def _value(self, name: str, values: dict[str, Tensor]) -> Tensor:
        for known in (values, self._folded, self._parameters, self._buffers):
            found = known.get(name)
            if found is not None:
                return found
        raise ModelError(f"training does not compute the tensor {name!r}")

    def _compute(self, call: Call, values: dict[str, Tensor]) -> Result:
        try:
            if call.node.op_type == "If":
                return self._taken(call.node.branch("then_branch" if call.x.all() else "else_branch"), call, values)
            return OPERATORS[call.node.op_type](call)
        except (ArithmeticError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            shapes = ", ".join("x".join(map(str, t.shape)) or "scalar" for t in call.present)
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"the node {call.node.label} does not fit its inputs {shapes}: {reason}") from error

    def _taken(self, branch: Branch, call: Call, values: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The results of a branch, which sees the tensors around it."""
        inner = dict(values)
        inner.update({name: tensor(value) for name, value in branch.constants.items()})
        for node in branch.nodes:
            inside = Call(node, self._operands(node, inner), call.training, call.batch_statistics)
            inner.update(_named(node, self._compute(inside, inner)))
        return tuple(self._value(name, inner) for name in branch.outputs)


def _named(node: Node, result: Result) -> Iterator[tuple[str, Tensor]]:
    results = (result,) if isinstance(result, Tensor) else result
    return ((name, value) for name, value in zip(node.outputs, results, strict=False) if name)


def _last_reads(nodes: Sequence[Node], keep: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """For every node, the tensors that nobody reads after it."""
    seen, last = set(keep), []
    for node in reversed(nodes):
        names = {name for name in (*node.inputs, *node.captured, *node.outputs) if name} - seen
        seen |= names
        last.append(tuple(names))
    return tuple(reversed(last))


def _require_operators(nodes: Iterable[Node]) -> None:
    missing = sorted({_full_name(node) for node in _all(nodes) if not _known(node)})
    if missing:
        raise ModelError(
            f"{', '.join(missing)} cannot be trained through", "leave fine-tuning out, or do it before int8"
        )


def _all(nodes: Iterable[Node]) -> Iterator[Node]:
    for node in nodes:
        yield node
        for branch in node.branches:
            yield from _all(branch.nodes)


def _known(node: Node) -> bool:
    return not node.domain and (node.op_type == "If" or node.op_type in OPERATORS)


def _full_name(node: Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type
