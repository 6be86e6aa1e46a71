"""A plan as one ONNX model: shared operators are there once for each part, and every operator says where it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from hetrl.device_bridge.runner.job import Port
from hetrl.graph import OperatorGraph
from hetrl.graph.declared import dtype_code
from hetrl.graph.model import FusionGroup
from hetrl.graph.operator import Operator
from hetrl.graph.reader import graph_from_model
from hetrl.graph.roles import GroupView
from hetrl.graph.single import Array
from hetrl.partition.partitioner import Partitioner
from hetrl.partition.stages import Stage, stages
from hetrl.partition.submodel import Submodel, slice_node
from hetrl.plan import Part, Plan

_METADATA_IR = 10  # the IR version since which nodes carry metadata
KEYS = ("hetrl.processor", "hetrl.share_pct", "hetrl.segment")


@dataclass(frozen=True)
class Place:
    """Where one ONNX node runs.

    :param segment: number of the plan's segment.
    :param kernel: equal for nodes that are one kernel: those of one fusion group that one part does.
    """

    processor: str
    share_pct: int
    segment: int
    kernel: str

    @property
    def metadata(self) -> dict[str, str]:
        """What Netron's node panel shows."""
        return dict(zip(KEYS, (self.processor, str(self.share_pct), str(self.segment)), strict=True))


@dataclass(frozen=True)
class WholeModel:
    """The model, its nodes named like the first of their outputs that have names.

    :param places: by node name.
    :param parts: what the weights are looked up in.
    """

    model: onnx.ModelProto
    places: Mapping[str, Place]
    parts: tuple[Submodel, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Blobs that the weights are in."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.files))

    def weights(self) -> dict[str, Array]:
        """Numbers of the initializers that the model names without holding them."""
        return {name: values for part in self.parts for name, values in part.weights().items()}

    def graph(self, name: str) -> OperatorGraph:
        """Its operator graph, each kernel being a fusion group."""
        kernels = {node: place.kernel for node, place in self.places.items()}

        def grouping(operators: Sequence[Operator], outputs: Iterable[str]) -> tuple[FusionGroup, ...]:
            members: dict[str, list[int]] = {}
            for index, operator in enumerate(operators):
                members.setdefault(kernels[operator.id], []).append(index)
            in_order = sorted(members.values(), key=lambda found: found[-1])
            return tuple(GroupView(operators, found).group(index) for index, found in enumerate(in_order))

        return graph_from_model(self.model, name=name, grouping=grouping)


def whole_model(partitioner: Partitioner, plan: Plan) -> WholeModel:
    """Write the plan's parts into one model, in the plan's order.

    :raises PlanError: the plan does not fit the partitioner's model.
    """
    writer = _Writer(partitioner)
    for stage in stages(plan, partitioner.graph):
        writer.add(stage, partitioner.submodels(stage))
    return writer.written()


def annotate(
    model: onnx.ModelProto, places: Mapping[str, Place], more: Mapping[str, Mapping[str, str]] | None = None
) -> None:
    """Write places into nodes' metadata, in place.

    :param more: by further key, the value for each processor.
    """
    model.ir_version = max(model.ir_version, _METADATA_IR)
    for node in model.graph.node:
        place = places[node.name]
        notes = place.metadata | {key: values[place.processor] for key, values in (more or {}).items()}
        for key, value in notes.items():
            node.metadata_props.add(key=key, value=value)


class _Writer:
    def __init__(self, partitioner: Partitioner) -> None:
        self._graph = partitioner.graph
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._places: dict[str, Place] = {}
        self._parts: list[Submodel] = []
        self._base: onnx.ModelProto | None = None

    def add(self, stage: Stage, models: Sequence[Submodel]) -> None:
        partial: dict[str, list[tuple[int, str]]] = {}
        for number, (part, model) in enumerate(zip(stage.parts, models, strict=True)):
            self._base = self._base or model.model
            self._parts.append(model)
            suffix = f"@{stage.segment}.{number}" if len(models) > 1 else ""
            names = self._read(model, stage, part, suffix)
            for tensor in model.model.graph.initializer:
                self._initializers.setdefault(tensor.name, tensor)
            made = [self._renamed(node, names, suffix, stage) for node in model.model.graph.node]
            self._nodes += made
            self._place(model, made, stage, part, suffix)
            for port in model.writes:
                if suffix:
                    partial.setdefault(port.tensor, []).append((port.start, names.get(port.name, port.name + suffix)))
        for tensor, pieces in partial.items():
            self._join(tensor, [name for _, name in sorted(pieces)], stage, models)

    def _read(self, model: Submodel, stage: Stage, part: Part, suffix: str) -> dict[str, str]:
        """The names in the whole model of what a part reads; slices are cut here."""
        names: dict[str, str] = {}
        for port in model.reads:
            if port.axis is None:
                names[port.name] = port.tensor
                continue
            new = names[port.name] = f"{port.name}{suffix}"
            nodes, constants = slice_node(port.tensor, new, port.axis, port.start, port.stop, self._opset)
            self._own([nodes], stage, part)
            self._initializers.update({c.name: c for c in constants})
        return names

    def _renamed(self, node: onnx.NodeProto, names: dict[str, str], suffix: str, stage: Stage) -> onnx.NodeProto:
        """With names of the part's own; what makes a constant there may be in other stages as well."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        made = [name + suffix if name else "" for name in node.output]
        if made[0] in self._places:
            made[0] += f"#{stage.segment}.{stage.groups[0]}"
        del new.input[:], new.output[:]
        new.input.extend(names.get(name, name) for name in node.input)
        new.output.extend(made)
        names |= {name: there for name, there in zip(node.output, made, strict=True) if name}
        new.name = next(name for name in made if name)
        return new

    def _place(self, model: Submodel, made: Sequence[onnx.NodeProto], stage: Stage, part: Part, suffix: str) -> None:
        """A node that is no operator of the graph is a slice, a kernel of its own, or goes with what it feeds.

        :param made: the submodel's nodes under their new names.
        """
        index, groups = self._graph.node_index, self._graph.group_of_node
        waiting: list[str] = []
        for node, new in zip(model.model.graph.node, made, strict=True):
            name, first = new.name, next(name for name in node.output if name)
            place = Place(part.processor, part.share_pct, stage.segment, name)
            if first in index:
                kernel = f"{groups[index[first]]}{suffix}"
                for before in (*waiting, name):
                    self._places[before] = Place(place.processor, place.share_pct, place.segment, kernel)
                waiting = []
            elif node.op_type == "Slice":
                self._places[name] = place
            else:
                waiting.append(name)

    def _own(self, nodes: Sequence[onnx.NodeProto], stage: Stage, part: Part) -> None:
        for node in nodes:
            node.name = node.output[0]
            self._nodes.append(node)
            self._places[node.name] = Place(part.processor, part.share_pct, stage.segment, node.name)

    def _join(self, tensor: str, pieces: Sequence[str], stage: Stage, models: Sequence[Submodel]) -> None:
        """The parts' results as one tensor, by the host, which is the last part."""
        axis = next(port.axis for model in models for port in model.writes if port.tensor == tensor)
        host = stage.parts[-1]
        if axis is None:  # one part does all of a small tensor
            joined = helper.make_node("Identity", list(pieces), [tensor])
        else:
            joined = helper.make_node("Concat", list(pieces), [tensor], axis=axis)
        self._own([joined], stage, Part(host.processor, 100))

    @property
    def _opset(self) -> int:
        assert self._base is not None
        return next((o.version for o in self._base.opset_import if o.domain in ("", "ai.onnx")), 0)

    def written(self) -> WholeModel:
        assert self._base is not None
        info = {
            t.name: helper.make_tensor_value_info(t.name, dtype_code(t.dtype), t.shape) for t in self._graph.tensors
        }
        graph = helper.make_graph(
            self._nodes,
            self._graph.name or "model",
            [info[name] for name in self._graph.inputs],
            [info[name] for name in self._graph.outputs],
            list(self._initializers.values()),
        )
        base = self._base
        model = helper.make_model(
            graph, opset_imports=base.opset_import, ir_version=base.ir_version, producer_name="hetrl"
        )
        return WholeModel(model, self._places, tuple(self._parts))


def port_shape(port: Port, shape: Sequence[int]) -> tuple[int, ...]:
    """Of the slice that a port is of a tensor."""
    sizes = list(shape)
    if port.axis is not None:
        sizes[port.axis] = port.stop - port.start
    return tuple(sizes)
