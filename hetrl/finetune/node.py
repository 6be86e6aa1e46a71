"""One ONNX node as the torch reader sees it, and one call of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from hetrl.errors import ModelError
from hetrl.graph.single import plain_domain
from hetrl.graph.wiring import captured, label

Array = NDArray[np.generic]


class Node:
    """A node with typed access to its attributes.

    :param opset: the version of the standard operators that the model imports.
    """

    def __init__(self, proto: onnx.NodeProto, opset: int) -> None:
        self.op_type = str(proto.op_type)
        self.domain = plain_domain(proto.domain)
        self.label = label(proto)
        self.opset = opset
        self.inputs = tuple(proto.input)
        self.outputs = tuple(proto.output)
        self.captured = tuple(captured(proto))
        self._attributes: Mapping[str, onnx.AttributeProto] = {a.name: a for a in proto.attribute}

    def has(self, name: str) -> bool:
        return name in self._attributes

    def integer(self, name: str, default: int) -> int:
        return int(self._attributes[name].i) if name in self._attributes else default

    def number(self, name: str, default: float) -> float:
        return float(self._attributes[name].f) if name in self._attributes else default

    def text(self, name: str, default: str) -> str:
        return self._attributes[name].s.decode() if name in self._attributes else default

    def integers(self, name: str) -> list[int] | None:
        return [int(i) for i in self._attributes[name].ints] if name in self._attributes else None

    def numbers(self, name: str) -> list[float] | None:
        return [float(f) for f in self._attributes[name].floats] if name in self._attributes else None

    def array(self, name: str) -> Array:
        """A tensor, or a number or several as one."""
        value = helper.get_attribute_value(self._attributes[name])
        return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)

    def branch(self, name: str) -> Branch:
        return self._branches[name]

    @property
    def branches(self) -> tuple[Branch, ...]:
        return tuple(self._branches.values())

    @cached_property
    def _branches(self) -> Mapping[str, Branch]:
        graphs = {name: a.g for name, a in self._attributes.items() if a.HasField("g")}
        return {name: Branch(graph, self.opset) for name, graph in graphs.items()}


class Branch:
    """The subgraph of an If: its nodes in order, its own constants, the names of its results."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self.nodes = tuple(Node(proto, opset) for proto in graph.node)
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.outputs = tuple(output.name for output in graph.output)


@dataclass(frozen=True)
class Call:
    """A node with its operands at hand.

    :param operands: by position, None where an optional one is left out.
    :param training: whether dropout drops.
    :param batch_statistics: whether BatchNormalization takes mean and variance from the batch.
    """

    node: Node
    operands: tuple[Tensor | None, ...]
    training: bool = False
    batch_statistics: bool = False

    @property
    def x(self) -> Tensor:
        return self.tensor(0)

    @property
    def present(self) -> list[Tensor]:
        return [operand for operand in self.operands if operand is not None]

    def optional(self, position: int) -> Tensor | None:
        return self.operands[position] if position < len(self.operands) else None

    def tensor(self, position: int) -> Tensor:
        operand = self.optional(position)
        if operand is None:
            raise ModelError(f"the node {self.node.label} lacks its input {position + 1}")
        return operand

    def integers(self, name: str, position: int) -> list[int] | None:
        """What older opsets give as an attribute and newer ones as an operand."""
        operand = self.optional(position)
        return self.node.integers(name) if operand is None else [int(i) for i in operand.reshape(-1).tolist()]

    def axes(self, rank: int, position: int = 1) -> list[int] | None:
        """The axes counted from the front, None where none are given."""
        axes = self.integers("axes", position)
        return None if axes is None else [axis % rank for axis in axes]

    def axis(self, default: int) -> int:
        return self.node.integer("axis", default) % max(1, self.x.ndim)

    def refuse(self, what: str) -> ModelError:
        return ModelError(f"the node {self.node.label} cannot be trained: {what} is not supported")


Result = Tensor | tuple[Tensor, ...]
Operator = Callable[[Call], Result]
Operators = Mapping[str, Operator]
