"""The operator graph: what hetrl knows of a model, free of ONNX and of weights.

A `Node` is one ONNX operator that computes something at inference time (constants are folded away). A
`FusionGroup` is what a mobile runtime runs as one kernel: an anchor (conv, gemm, pool, ...) with the normalization,
activation and residual add behind it. Groups are the smallest thing a plan places; each has exactly one exit, the
last node's outputs, so that contracting groups never makes a cycle.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from hetrl.graph.channels import Channels
    from hetrl.graph.operator import Operator


class OpKind(StrEnum):
    """The classes of operators that cost models tell apart."""

    CONV = "conv"
    CONV_TRANSPOSE = "conv_transpose"
    GEMM = "gemm"  # dense with constant weights: Gemm, or MatMul with a constant operand
    MATMUL = "matmul"  # both operands are activations
    POOL = "pool"
    GLOBAL_POOL = "global_pool"
    NORM = "norm"
    SOFTMAX = "softmax"
    REDUCE = "reduce"
    ELEMENTWISE = "elementwise"
    RESIZE = "resize"
    COPY = "copy"  # moves data without arithmetic: Concat, Slice, Transpose, Pad, Gather, ...
    VIEW = "view"  # moves nothing: Reshape, Flatten, Squeeze, Identity, ...
    UNKNOWN = "unknown"


class Geometry(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of one operator's work, NCHW; dense operators have height and width 1.

    `in_h`, `in_w` are unpadded. `groups` is 1 for plain, `in_channels` for depthwise convolutions.
    """

    kind: OpKind
    batch: int = 1
    in_channels: int = 1
    in_h: int = 1
    in_w: int = 1
    out_channels: int = 1
    out_h: int = 1
    out_w: int = 1
    kernel_h: int = 1
    kernel_w: int = 1
    stride_h: int = 1
    stride_w: int = 1
    dilation_h: int = 1
    dilation_w: int = 1
    pad_top: int = 0
    pad_bottom: int = 0
    pad_left: int = 0
    pad_right: int = 0
    groups: int = 1

    @property
    def depthwise(self) -> bool:
        return self.kind is OpKind.CONV and self.groups > 1 and self.groups == self.in_channels


class Tensor(msgspec.Struct, frozen=True):
    """An activation: `shape` with all dimensions known, `bytes` at the graph's own precision."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One operator.

    :param id: name of its first output tensor in the original graph.
    :param inputs: activation inputs only (no constants, no empty optional ones), in order.
    :param macs: multiply-accumulates; `flops` counts two for each, plus elementwise arithmetic.
    :param weight_bytes: bytes of constant operands.
    :param signature: digest of what else makes the operator what it is (attributes, constant shapes).
    :param front: of an operator that low rank has made two: the first of them, `geometry` being the second's.
    """

    id: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    geometry: Geometry
    macs: int
    flops: int
    input_bytes: int
    output_bytes: int
    weight_bytes: int
    weight_elements: int
    signature: str
    front: Geometry | None = None


class InputRole(StrEnum):
    """How a group reads an external input."""

    WINDOW = "window"  # through the anchor's kernel: rows follow stride, kernel and padding
    ALIGNED = "aligned"  # element by element at the group's output resolution (a residual operand)
    WHOLE = "whole"  # all of it, whatever part of the output is made


class GroupInput(msgspec.Struct, frozen=True):
    tensor: str
    role: InputRole


class FusionGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Operators that a runtime executes as one kernel.

    :param nodes: indices into `OperatorGraph.nodes`, topological; the last one is the exit.
    :param anchor: index (into `OperatorGraph.nodes`) of the node whose geometry is the group's.
    :param inputs: external activation tensors, the anchor's data input first.
    :param outputs: tensors that leave the group (the exit's outputs).
    :param splits_height: may be cut into bands of output rows.
    :param splits_channels: may be cut into slices of output channels.
    """

    index: int
    nodes: tuple[int, ...]
    anchor: int
    inputs: tuple[GroupInput, ...]
    outputs: tuple[str, ...]
    splits_height: bool
    splits_channels: bool


class Origin(msgspec.Struct, frozen=True):
    """What a model was read from: a built-in network's name or a file's path.

    :param seeded_weights: seed to draw missing weights from, None not to.
    """

    model: str
    builtin: bool
    seeded_weights: int | None = None


class OperatorGraph(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A model after shape inference, constant folding and grouping; nodes and groups in topological order.

    :param structure_hash: sha256 (hex) of everything but weights and the model's name.
    :param weights_hash: sha256 (hex) of the weights, None where they were not read.
    :param warnings: what a user should know (unknown operators, assumed shapes).
    :param origin: what to read the weights from; None for a model in memory.
    :param operators: what the nodes were made of, one each: attributes, and constants' shapes.
    """

    name: str
    nodes: tuple[Node, ...]
    groups: tuple[FusionGroup, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    structure_hash: str
    weights_hash: str | None = None
    warnings: tuple[str, ...] = ()
    origin: Origin | None = None
    operators: tuple[Operator, ...] = ()

    @cached_property
    def channels(self) -> Channels:
        """Where channels lie, and which go together; traced when it is asked for first."""
        from hetrl.graph.channels import trace

        return trace(self.operators, self.outputs)

    @cached_property
    def tensor_by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    @cached_property
    def group_of_node(self) -> tuple[int, ...]:
        """Group index of each node."""
        owner = [0] * len(self.nodes)
        for group in self.groups:
            for node in group.nodes:
                owner[node] = group.index
        return tuple(owner)

    @cached_property
    def node_index(self) -> dict[str, int]:
        return {node.id: index for index, node in enumerate(self.nodes)}

    @cached_property
    def producer_group(self) -> dict[str, int]:
        """Tensor name -> index of the group that makes it; graph inputs are absent."""
        return {tensor: group.index for group in self.groups for tensor in group.outputs}

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """For each group, the groups whose outputs it reads."""
        made_by = self.producer_group
        return tuple(
            tuple(sorted({made_by[i.tensor] for i in group.inputs if i.tensor in made_by})) for group in self.groups
        )

    @property
    def parameters(self) -> int:
        return sum(node.weight_elements for node in self.nodes)

    @property
    def macs(self) -> int:
        return sum(node.macs for node in self.nodes)

    @property
    def weight_bytes(self) -> int:
        return sum(node.weight_bytes for node in self.nodes)

    def group_macs(self, index: int) -> int:
        return sum(self.nodes[n].macs for n in self.groups[index].nodes)

    def group_weight_bytes(self, index: int) -> int:
        return sum(self.nodes[n].weight_bytes for n in self.groups[index].nodes)

    def group_geometry(self, index: int) -> Geometry:
        return self.nodes[self.groups[index].anchor].geometry

    def group_front(self, index: int) -> Geometry | None:
        """The first of two operators that the group's anchor stands for, if it does (`Node.front`)."""
        return self.nodes[self.groups[index].anchor].front

    def group_node_ids(self, index: int) -> tuple[str, ...]:
        return tuple(self.nodes[n].id for n in self.groups[index].nodes)

    def is_convex(self, members: frozenset[int] | set[int]) -> bool:
        """Whether no path between two of these groups leaves the set: such a set can run as one piece."""
        if not members:
            return True
        tainted: set[int] = set()  # groups outside that a member reaches
        for index in range(min(members), max(members) + 1):
            reached = any(p in tainted or p in members for p in self.predecessors[index])
            if index in members:
                if any(p in tainted for p in self.predecessors[index]):
                    return False
            elif reached:
                tainted.add(index)
        return True
