"""The layers of a model that can be factored, and why the others cannot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import msgspec
import onnx
from onnx import TensorProto

from hetrl.compress.low_rank.policy import LowRank
from hetrl.compress.stored import Stock, Stored
from hetrl.graph import OperatorGraph
from hetrl.graph.model import OpKind
from hetrl.graph.single import plain_domain
from hetrl.graph.wiring import reads

_WEIGHTED = frozenset({OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.GEMM})
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_FACTORED = frozenset({"Conv", "Gemm", "MatMul"})
OPTIONAL_BIAS = 11  # the opset from which a Gemm needs no bias


class LeftLayer(msgspec.Struct, frozen=True):
    """A layer that stays as it is: the name of its first output, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Use:
    """An operator that reads a layer's weights; shapes of its data and of its result."""

    index: int
    source: tuple[int, ...]
    out: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """Weights, and the operators that read them: usually one, several where they are shared.

    :param weight: the name under which the first of them reads them.
    :param turned: whether a dense layer's weights are (out, in), not (in, out).
    """

    name: str
    op_type: str
    weight: str
    constant: Stored
    turned: bool
    uses: tuple[Use, ...]

    @property
    def dense(self) -> bool:
        return self.op_type != "Conv"


def find_layers(model: onnx.ModelProto, graph: OperatorGraph, policy: LowRank) -> tuple[list[Layer], list[LeftLayer]]:
    """Every operator with weights is in a layer or left, in the model's order."""
    search = _Search(model, graph, policy)
    return search.layers(), search.left


class _Search:
    def __init__(self, model: onnx.ModelProto, graph: OperatorGraph, policy: LowRank) -> None:
        self.left: list[LeftLayer] = []
        self._nodes = model.graph.node
        self._graph = graph
        self._policy = policy
        self._opset = next((o.version for o in model.opset_import if not plain_domain(o.domain)), 0)
        self._constants = Stock(model)
        self._readers = self._count_readers(model)
        self._stem = next((n.output[0] for n in self._nodes if n.op_type == "Conv"), None)
        self._last = _classifiers(graph)

    def layers(self) -> list[Layer]:
        found: dict[tuple[str, str, bool], list[Layer]] = {}
        for index, node in enumerate(self._nodes):
            place = self._graph.node_index.get(node.output[0]) if node.output else None
            if place is None or self._graph.nodes[place].geometry.kind not in _WEIGHTED:
                continue
            layer = self._layer(index, node)
            if isinstance(layer, str):
                self.left.append(LeftLayer(node.output[0], layer))
            else:
                key = (layer.constant.name, layer.op_type, layer.turned != layer.constant.turned)
                found.setdefault(key, []).append(layer)
        return [layer for (root, *_), same in found.items() for layer in self._shared(root, same)]

    def _shared(self, root: str, same: list[Layer]) -> list[Layer]:
        """One layer of all operators that read the same weights; none where others read them too."""
        if self._readers[root] > len(same):
            self.left += [LeftLayer(layer.name, "its weights are read by other operators too") for layer in same]
            return []
        first = same[0]
        uses = tuple(use for layer in same for use in layer.uses)
        return [Layer(first.name, first.op_type, first.weight, first.constant, first.turned, uses)]

    def _count_readers(self, model: onnx.ModelProto) -> Counter[str]:
        """How often each stored constant is read, by operators that do something or as an output."""
        names = [name for node in self._nodes if not self._constants.passes(node) for name in reads(node)]
        names += [output.name for output in model.graph.output]
        found = [self._constants.find(name) for name in names]
        return Counter(constant.name for constant in found if constant is not None)

    def _layer(self, index: int, node: onnx.NodeProto) -> Layer | str:
        """The layer of one operator, or why it has to stay."""
        if plain_domain(node.domain) or node.op_type not in _FACTORED:
            return f"the operator {node.op_type} is not factored"
        constant = self._constants.find(node.input[1])
        reason = self._obstacle(node, constant)
        if constant is None or reason:
            return reason
        turned = bool(_integer(node, "transB", 0))
        source = self._graph.tensor_by_name[node.input[0]].shape
        out = self._graph.tensor_by_name[node.output[0]].shape
        name = node.output[0]
        return Layer(name, node.op_type, node.input[1], constant, turned, (Use(index, source, out),))

    def _obstacle(self, node: onnx.NodeProto, constant: Stored | None) -> str:  # noqa: PLR0911 one reason each
        name, matrix = node.output[0], node.op_type != "Conv"
        if constant is None:
            constants = (self._constants.find(other) for other in node.input[:1])
            return "its weights are the left factor" if any(constants) else "its weights are computed or quantized"
        if constant.tensor.data_type not in _FLOATS:
            return "its weights are no floating-point numbers"
        if matrix and len(constant.shape) != 2:
            return f"its weights have {len(constant.shape)} axes"
        if node.op_type == "Conv":
            groups = _integer(node, "group", 1)
            if groups > 1:
                return "depthwise convolution" if constant.shape[1] == 1 else "grouped convolution"
            matrix = all(size == 1 for size in constant.shape[2:])
        elif node.op_type == "Gemm" and self._opset < OPTIONAL_BIAS and _integer(node, "transA", 0):
            return f"a transposed Gemm of opset {self._opset}"
        if not self._policy.matrices and matrix:
            return "no window"
        if not self._policy.always and name == self._stem:
            return "the first convolution"
        if not self._policy.always and matrix and name in self._last:
            return "the classifier"
        return ""


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _classifiers(graph: OperatorGraph) -> set[str]:
    """Ids of the operators with weights from which a straight path without further ones leads to an output."""
    maker = {tensor: node for node in graph.nodes for tensor in node.outputs}
    found = set()
    for output in graph.outputs:
        node = maker.get(output)
        while node is not None and node.geometry.kind not in _WEIGHTED:
            node = maker.get(node.inputs[0]) if len(node.inputs) == 1 else None
        if node is not None:
            found.add(node.id)
    return found
