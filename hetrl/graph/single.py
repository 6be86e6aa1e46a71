"""One node by itself, as a model of one operator: its result types, and the values of constant ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from hetrl.graph.declared import SMALL, Declared, attributes, declared, dtype_code
from hetrl.graph.operator import Operand

Array = NDArray[np.generic]
# Their results can be far larger than what they read: the size is looked at before the values are made.
_GROWING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Upsample", "Pad", "OneHot"})


def plain_domain(domain: str) -> str:
    """The standard domain has two spellings."""
    return "" if domain == "ai.onnx" else domain


class Opsets(msgspec.Struct, frozen=True):
    """Which versions of which operators a model uses."""

    imports: tuple[onnx.OperatorSetIdProto, ...]
    ir_version: int

    def knows(self, node: onnx.NodeProto) -> bool:
        """Whether onnx has the operator in the version that the model imports."""
        domain = plain_domain(node.domain)
        version = next((o.version for o in self.imports if plain_domain(o.domain) == domain), None)
        return version is not None and bool(defs.has(node.op_type, version, domain))

    def infer(
        self, node: onnx.NodeProto, operands: Sequence[Operand], values: Mapping[str, Array]
    ) -> dict[str, Declared | None]:
        """Types of the results as far as they follow from the operands; None for what is no tensor.

        :param values: of small constants, by tensor name.
        :raises Exception: onnx's own, where the operands contradict the operator.
        """
        model = self._model(node, operands, values)
        # Propagating data makes onnx build shape constants in memory, whatever size the model asks for.
        small = all(operand.elements <= SMALL for operand in operands)
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=small)
        return {info.name: declared(info.type, {}) for info in inferred.graph.output if info.type.WhichOneof("value")}

    def evaluate(self, node: onnx.NodeProto, operands: Sequence[Operand], values: Mapping[str, Array]) -> list[Array]:
        """Values of a node that reads constants only; none where they cannot be had or would be large."""
        inputs = {operand.name: values[operand.name] for operand in operands if operand.name in values}
        if len(inputs) < len({operand.name for operand in operands}):
            return []
        try:
            if node.op_type in _GROWING and not self._stays_small(node, operands, values):
                return []
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                results = run_reference(self._model(node, operands, {}), inputs)
        except Exception:  # the reference implementation raises anything; then the shape alone has to do
            return []
        return results if all(array.size <= SMALL for array in results) else []

    def _stays_small(self, node: onnx.NodeProto, operands: Sequence[Operand], values: Mapping[str, Array]) -> bool:
        result = next(iter(self.infer(node, operands, values).values()), None)
        return result is not None and result.static is not None and int(np.prod(result.static)) <= SMALL

    def _model(self, node: onnx.NodeProto, operands: Sequence[Operand], values: Mapping[str, Array]) -> onnx.ModelProto:
        present = {operand.name: operand for operand in operands}
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(name, dtype_code(operand.dtype), operand.shape)
                for name, operand in present.items()
                if name not in values
            ],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
            [numpy_helper.from_array(values[name], name) for name in present if name in values],
        )
        # Before version 4 every initializer had to be an input as well.
        return helper.make_model(graph, opset_imports=self.imports, ir_version=max(self.ir_version, 4))


def run_reference(proto: onnx.ModelProto | onnx.NodeProto, inputs: Mapping[str, Array]) -> list[Array]:
    """Results of onnx's reference implementation, which is slow: for small tensors only."""
    results: Sequence[object] = list(ReferenceEvaluator(proto).run(None, dict(inputs)))
    return [np.asarray(result) for result in results]


def shape_values(node: onnx.NodeProto, operand: Operand) -> Array:
    """What Shape or Size says of a tensor of known shape."""
    if node.op_type == "Size":
        return np.array(operand.elements, dtype=np.int64)
    bounds = attributes(node)
    start, end = bounds.integer("start", 0), bounds.integer("end", len(operand.shape))
    return np.array(operand.shape[start:end], dtype=np.int64)
