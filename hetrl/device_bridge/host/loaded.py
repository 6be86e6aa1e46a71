"""A model with its weights as runners run it: cut by plans, and compressed as plans say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from hetrl.compress.planned import compressed_graph
from hetrl.compress.variant import compressed_source
from hetrl.compression import NO_COMPRESSION, Compression
from hetrl.device_bridge.blobs import BlobStore
from hetrl.device_bridge.runner.arrays import pack_arrays
from hetrl.device_bridge.runner.job import Job
from hetrl.graph import OperatorGraph
from hetrl.partition import Partitioner, Target, reference_outputs, seeded_inputs
from hetrl.plan import Plan
from hetrl.zoo.source import ModelSource, source_of

INPUT_SEED = 0
KEPT = 3  # compressed models that stay in memory


@dataclass(frozen=True)
class _Variant:
    """What compression made of the model; `reference` is the blob of its outputs."""

    partitioner: Partitioner
    reference: str


class LoadedModel:
    """A model to be measured on a machine.

    :param graph: of the same model, with the shapes that it will run on.
    :param store: where the files go.
    :ivar inputs: blob of the inputs that it is measured with.
    :raises ModelError: its weights are missing, or do not fit.
    :raises MissingExtra: there is no ONNX Runtime to say what is right.
    """

    def __init__(self, source: ModelSource, graph: OperatorGraph, store: BlobStore) -> None:
        self._source = source
        self._graph = graph
        self._store = store
        self._values = seeded_inputs(graph, INPUT_SEED)
        self._original = self._variant(source, graph, NO_COMPRESSION)  # says at once that weights are missing
        self._compressed = lru_cache(maxsize=KEPT)(self._compress)
        self.inputs = store.put(pack_arrays([self._values[name] for name in graph.inputs]), ".npz")

    def job(self, plan: Plan, targets: Mapping[str, Target]) -> Job:
        """The plan as a runner executes it; its outputs are to be those of the compressed model run whole.

        :raises PlanError: see `Partitioner.job`.
        """
        variant = self._compressed(plan.compression.shapes) if plan.compression.changes else self._original
        return replace(variant.partitioner.job(plan, targets), reference=variant.reference)

    def _compress(self, compression: Compression) -> _Variant:
        source = compressed_source(self._source, self._graph, compression)
        return self._variant(source, compressed_graph(self._graph, compression), compression)

    def _variant(self, source: ModelSource, graph: OperatorGraph, compression: Compression) -> _Variant:
        partitioner = Partitioner(source, graph, self._store, compression)
        outputs = reference_outputs(source, self._values)
        return _Variant(partitioner, self._store.put(pack_arrays([outputs[name] for name in graph.outputs]), ".npz"))


def load(graph: OperatorGraph, store: BlobStore) -> LoadedModel:
    """The graph's model with its weights.

    :raises ModelError, MissingExtra: see `LoadedModel`.
    """
    return LoadedModel(source_of(graph, builtin_seed=0), graph, store)
