"""Plans as files that run: a model is cut into submodels, one for each part of each segment."""

from hetrl.fidelity import largest_error, seeded_inputs
from hetrl.partition.partitioner import Partitioner, Target
from hetrl.partition.reference import reference_outputs, require_engines
from hetrl.partition.submodel import Submodel
from hetrl.zoo.source import BlueprintSource, FileSource, ModelSource, open_source

__all__ = [
    "BlueprintSource",
    "FileSource",
    "ModelSource",
    "Partitioner",
    "Submodel",
    "Target",
    "largest_error",
    "open_source",
    "reference_outputs",
    "require_engines",
    "seeded_inputs",
]
