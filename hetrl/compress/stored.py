"""Where a model's operators get their weights from: initializers and constants, as they are or turned around."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from hetrl.graph.single import plain_domain

_TURNS = {(): True, (1, 0): True, (0, 1): False}  # of a matrix, by the permutation


@dataclass(frozen=True)
class Stored:
    """A constant as an operator reads it.

    :param name: of the initializer, or of the Constant's output.
    :param tensor: what is stored.
    :param turned: whether it is the transposed matrix of that.
    """

    name: str
    tensor: TensorProto
    turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        stored = tuple(self.tensor.dims)
        return stored[::-1] if self.turned else stored

    @property
    def present(self) -> bool:
        """Whether its numbers are there, not just its shape."""
        return self.tensor.data_location != TensorProto.EXTERNAL

    def array(self) -> NDArray[np.generic]:
        stored = np.asarray(numpy_helper.to_array(self.tensor))
        return stored.T if self.turned else stored


class Stock:
    """The constants of a model by the names under which operators read them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._maker = {name: node for node in model.graph.node for name in node.output if name}

    def find(self, name: str) -> Stored | None:
        """None for what is no constant, or one that is computed in any way but by Identity and Transpose."""
        if name in self._stored:
            return Stored(name, self._stored[name])
        node = self._maker.get(name)
        if node is None or plain_domain(node.domain):
            return None
        if node.op_type == "Constant":
            tensor = next((a.t for a in node.attribute if a.name == "value"), None)
            return None if tensor is None else Stored(name, tensor)
        if node.op_type not in ("Identity", "Transpose"):
            return None
        found = self.find(node.input[0])
        if found is None or node.op_type == "Identity":
            return found
        turn = _TURNS.get(next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ()))
        if turn is None or len(found.shape) != 2:
            return None
        return Stored(found.name, found.tensor, found.turned != turn)

    def passes(self, node: onnx.NodeProto) -> bool:
        """Whether a node only hands a constant on."""
        return bool(node.output) and self.find(node.output[0]) is not None
