"""Constants of a model by name: of initializers, of Constant nodes, and what the model computes from them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from hetrl.errors import ModelError
from hetrl.graph.constant_node import constant_results
from hetrl.graph.operator import Operand
from hetrl.graph.single import shape_values
from hetrl.graph.wiring import reads

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
            self._computed[node.output[0]] = shape_values(node, operand)
            return
        inputs = {name: self.value(name) for name in reads(node)}
        self._computed |= constant_results(node, inputs, self._model.opset_import, self._model.ir_version)
