"""Greedy partitioning by priority: each processor in turn claims every fusion group that it takes and nobody has yet.

Accelerators come in the device's order, the CPU last: what a user of the two runtimes below usually writes.

- ONNX Runtime (microsoft/onnxruntime, `GraphPartitioner`): the execution providers' `GetCapability`, in the order in
  which the session lists them; the CPU provider takes what is left. Left out: nodes that compute shapes, which some
  providers leave to the CPU.
- OpenVINO (openvinotoolkit/openvino, HETERO plugin): `query_model` of the devices in the order of `HETERO:GPU,CPU`;
  connected operations of one affinity form a submodel, and submodels run one after the other.

Both ignore every cost: how fast a processor is, what a border between two costs, how short a run is. The two differ in
how they cut the graph between borders, which costs nothing here: in the graph's order their plans are the same.
"""

from __future__ import annotations

from hetrl.agents.policies.placing import placed_on
from hetrl.device_bridge.surrogate.schedule import Schedule
from hetrl.device_bridge.surrogate.tables import Tables


def claimed(takes: list[list[bool]], priority: list[int]) -> list[int]:
    """The first processor of `priority` that takes each position.

    :param takes: by position and processor.
    """
    return [next(p for p in priority if row[p]) for row in takes]


def greedy_schedule(tables: Tables) -> Schedule:
    """The plan on a device's engine set."""
    processors = tables.engine.processors
    priority = sorted(range(len(processors)), key=lambda p: processors[p].unit == "cpu")  # stable: the CPUs go last
    takes = tables.possible[:, : len(processors)].tolist()  # as options, single processors have their own numbers
    return placed_on(claimed(takes, priority), tables.engine)
