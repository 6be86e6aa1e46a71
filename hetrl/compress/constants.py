"""Constants of a model by name: of initializers, of Constant nodes, and what the model computes from them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hetrl.errors import ModelError
from hetrl.graph.operator import Operand
from hetrl.graph.single import run_reference, shape_values
from hetrl.graph.wiring import label

Array = NDArray[np.generic]


class Constants:
    """Looks up and computes constants; each is computed once.

    :param model: complete, functions inlined.
    :param shapes: of activations by name.
    """

    def __init__(self, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {name: node for node in model.graph.node for name in node.output if name}
        self._model = model
        self._shapes = shapes
        self._computed: dict[str, Array] = {}

    def value(self, name: str) -> Array:
        """The numbers of a constant; not to be written to.

        :raises ModelError: it cannot be computed.
        """
        if name in self.initializers:
            if self.initializers[name].data_location == TensorProto.EXTERNAL:
                raise ModelError(
                    f"the weights {name!r} are not in the model", "draw missing ones with --seeded-weights SEED"
                )
            return np.asarray(numpy_helper.to_array(self.initializers[name]))
        if name not in self._computed:
            self._compute(name)
        return self._computed[name]

    def depends_on(self, name: str, changed: set[str]) -> bool:
        """Whether a constant is computed from the shape of one of these activations."""
        open_, seen = [name], set[str]()
        while open_:
            node = self.producers.get(open_.pop())
            for source in node.input if node is not None else ():
                if source in changed:
                    return True
                if source and source not in seen and source not in self._shapes:
                    seen.add(source)
                    open_.append(source)
        return False

    def _compute(self, name: str) -> None:
        node = self.producers.get(name)
        if node is None:
            raise ModelError(f"the constant {name!r} has no numbers")
        if node.op_type in ("Shape", "Size") and node.input[0] in self._shapes:
            operand = Operand(node.input[0], self._shapes[node.input[0]], "float32", False, 0)
            results = [shape_values(node, operand)]
        elif node.op_type == "DequantizeLinear":  # the reference implementation has its latest versions only
            results = [self._dequantized(node)]
        else:
            results = self._run(node)
        self._computed |= {output: array for output, array in zip(node.output, results, strict=False) if output}

    def _dequantized(self, node: onnx.NodeProto) -> Array:
        values = [self.value(name) for name in node.input if name]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        narrow, scale = values[0].astype(np.float32), values[1]
        factors = [values[1], *values[2:]]
        if scale.size > 1 and scale.ndim == 1:
            axis %= narrow.ndim
            factors = [f.reshape(-1, *(1,) * (narrow.ndim - axis - 1)) for f in factors]
        elif scale.size > 1:  # one for each block
            factors = [f.repeat(narrow.shape[axis] // scale.shape[axis], axis) for f in factors]
        zero = factors[1].astype(np.float32) if len(factors) > 1 else np.float32(0)
        return np.asarray((narrow - zero) * factors[0])

    def _run(self, node: onnx.NodeProto) -> list[Array]:
        inputs = {name: self.value(name) for name in node.input if name}
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "one", infos, outputs)
        model = helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=max(self._model.ir_version, 4)
        )
        try:
            return run_reference(model, inputs)
        except Exception as error:  # the reference implementation raises anything
            raise ModelError(f"the constant {label(node)} cannot be computed: {error}") from error
