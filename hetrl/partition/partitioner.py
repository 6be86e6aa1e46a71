"""A model, its graph and a plan as a job that a runner executes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetrl.compression import NO_COMPRESSION, Compression
from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.runner.job import Job, Piece, Port, TensorInfo
from hetrl.errors import PlanError
from hetrl.graph import OperatorGraph
from hetrl.partition.constants import Constants
from hetrl.partition.shares import Cutter, Share, split_shares, whole_share
from hetrl.partition.stages import Stage, stages
from hetrl.partition.submodel import Flat, Submodel, submodel
from hetrl.plan import Axis, Plan
from hetrl.zoo.source import ModelSource


@dataclass(frozen=True)
class _Cut:
    """A submodel that is in the store."""

    reads: tuple[Port, ...]
    writes: tuple[Port, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """What a processor's id means on a device.

    :param cores: that it works on, one thread each.
    :param number: of the engine's device, such as a Vulkan one; None for the CPU.
    """

    cores: tuple[int, ...]
    number: int | None = None

    def excludes(self, other: Target) -> bool:
        """Whether the two never work side by side."""
        same_device = self.number is not None and self.number == other.number
        return same_device or bool(set(self.cores) & set(other.cores))


class Partitioner:
    """Cuts one model by plans; what plans have in common is written once.

    :param graph: of the same model, with the shapes that it will run on.
    :param store: where the files go.
    :param compression: what made the model of the one that plans are for.
    :raises ModelError: weights are missing, or do not fit.
    """

    def __init__(
        self, source: ModelSource, graph: OperatorGraph, store: BlobStore, compression: Compression = NO_COMPRESSION
    ) -> None:
        self.graph = graph
        self._compression = compression
        self.store = store
        model = source.model
        maker = {output: node for node in model.graph.node for output in node.output if output}
        nodes = tuple(maker[node.id] for node in graph.nodes)
        two = {n: maker[nodes[n].input[0]] for n, node in enumerate(graph.nodes) if node.front is not None}
        constants = Constants(source, graph, (*nodes, *two.values()), store)
        self._flat = Flat(graph, nodes, constants, tuple(model.opset_import), model.ir_version, two)
        self._made: dict[object, Submodel] = {}
        self._done: dict[object, _Cut] = {}

    def job(self, plan: Plan, targets: Mapping[str, Target]) -> Job:
        """The plan as submodels and who runs them when.

        :param targets: by processor id.
        :raises PlanError: the plan does not fit the model or the targets, or needs another network: it compresses
            otherwise, or has branches.
        """
        self._require_same_network(plan)
        steps = stages(plan, self.graph)
        for stage in steps:
            for part in stage.parts:
                if part.processor not in targets:
                    known = ", ".join(targets)
                    raise PlanError(f"segments[{stage.segment}].parts", f"no processor {part.processor!r}", known)
        duty = {cap.processor: cap.duty for cap in plan.caps}
        pieces: list[Piece] = []
        before: list[int] = []  # pieces of the step before
        for stage in steps:
            parts = []
            for number, cut in enumerate(self._cuts(stage)):
                processor = stage.parts[number].processor
                target = targets[processor]
                piece = Piece(
                    segment=stage.segment,
                    processor=processor,
                    files=cut.files,
                    cores=target.cores,
                    reads=cut.reads,
                    writes=cut.writes,
                    device=target.number,
                    duty=duty.get(processor, 1.0),
                    after=_operands_and_turn(pieces, cut, target, targets) if plan.overlap else tuple(before),
                )
                parts.append(piece)
            before = list(range(len(pieces), len(pieces) + len(parts)))
            pieces += parts
        return Job(self._tensors(pieces), self.graph.inputs, self.graph.outputs, tuple(pieces))

    def _require_same_network(self, plan: Plan) -> None:
        if plan.stretched:
            hint = "plan without --policy nn_stretch_*"
            raise PlanError("segments", "a plan with branches is for a network that must be trained anew", hint)
        if plan.compression.shapes != self._compression:
            raise PlanError("compression", "this is not the model that the plan's compression makes")

    def submodels(self, stage: Stage) -> tuple[Submodel, ...]:
        """One model for each part of a step of a plan, as `stages` gives them.

        :raises PlanError: a part would have nothing to do.
        """
        leaving = stage.leaving(self.graph)
        nodes = sorted(n for g in stage.groups for n in self.graph.groups[g].nodes)
        shares_pct = tuple(part.share_pct for part in stage.parts)
        cutter: Cutter | None = None
        shares: tuple[Share, ...] = (whole_share(self.graph, nodes, leaving),)
        if stage.axis is not Axis.NONE:
            where = f"segments[{stage.segment}].parts"
            cutter, shares = split_shares(self.graph, stage.groups, stage.axis, leaving, shares_pct, where)
        found = []
        for number, share in enumerate(shares):
            key = (stage.groups, stage.axis, shares_pct, number)
            if key not in self._made:
                self._made[key] = submodel(self._flat, nodes, share, cutter)
            found.append(self._made[key])
        return tuple(found)

    def _cuts(self, stage: Stage) -> list[_Cut]:
        cuts: list[_Cut] = []
        shares_pct = tuple(part.share_pct for part in stage.parts)
        for number, (part, model) in enumerate(zip(stage.parts, self.submodels(stage), strict=True)):
            engine = part.processor.split("/")[1]
            key = (engine == "ncnn", stage.groups, stage.axis, shares_pct, number)
            if key not in self._done:
                self._done[key] = _Cut(model.reads, model.writes, self._files(model, engine))
            cuts.append(self._done[key])
        return cuts

    def _files(self, model: Submodel, engine: str) -> tuple[str, ...]:
        if engine == "ncnn":
            from hetrl.partition.ncnn import to_ncnn

            made = to_ncnn(model.model, model.weights())
            return self.store.put(made.param.encode(), ".param"), self.store.put(made.bin, ".bin")
        return (self.store.put(model.model.SerializeToString(deterministic=True), ".onnx"), *model.files)

    def _tensors(self, pieces: Sequence[Piece]) -> tuple[TensorInfo, ...]:
        ports = [port.tensor for piece in pieces for port in (*piece.reads, *piece.writes)]
        found = [self.graph.tensor_by_name[n] for n in dict.fromkeys((*self.graph.inputs, *ports, *self.graph.outputs))]
        return tuple(TensorInfo(tensor.name, tensor.shape, tensor.dtype) for tensor in found)


def _operands_and_turn(
    pieces: Sequence[Piece], cut: _Cut, target: Target, targets: Mapping[str, Target]
) -> tuple[int, ...]:
    """The pieces that make what a submodel reads, and the last ones on each processor that cannot work beside its own.

    Pieces of processors that exclude each other take turns in the plan's order.
    """
    makers = {
        number
        for number, piece in enumerate(pieces)
        if any(_meet(read, write) for read in cut.reads for write in piece.writes)
    }
    last: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        if target.excludes(targets[piece.processor]):
            last[piece.processor] = number
    return tuple(sorted(makers.union(last.values())))


def _meet(one: Port, other: Port) -> bool:
    """Whether the two have elements in common, as far as their axes tell."""
    apart = one.axis is not None and one.axis == other.axis and (one.stop <= other.start or other.stop <= one.start)
    return one.tensor == other.tensor and not apart
