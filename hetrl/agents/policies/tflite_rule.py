"""Partitions of TensorFlow Lite (LiteRT): the N largest by number of nodes go to one delegate, the rest to the CPU.

`GraphPartitionHelper::GetFirstNLargestPartitions` (tensorflow/lite/delegates/utils.cc) sorts partitions by how many
nodes they have and drops those below a minimum. Two numbers matter: `max_delegated_partitions`, 1 unless an app says
otherwise (the GPU's default), and `min_nodes_per_partition`, 2 (the Hexagon and Core ML delegates' default). A node is
a fusion group here, and a partition a run of supported groups in the order of execution; TFLite would also join runs
that do not depend on what is between them. Ignores how much work is in a partition: issue 66 of google-ai-edge/LiteRT
shows a network that takes 669 ms with its largest partition delegated and 402 ms with another one. Also ignores
transfers, and every other delegate: what this one refuses runs on the CPU, where other runtimes' chains of delegates
would give it to the GPU next.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from hetrl.device_bridge.surrogate.schedule import Placed, Schedule
from hetrl.device_bridge.surrogate.tables import Tables
from hetrl.plan import Memory

MAX_DELEGATED_PARTITIONS = 1
MIN_NODES_PER_PARTITION = 2


def partitions(supported: Sequence[bool]) -> list[range]:
    """Runs of positions that are supported, in order."""
    runs, start = [], 0
    for takes, run in groupby(supported):
        end = start + len(list(run))
        if takes:
            runs.append(range(start, end))
        start = end
    return runs


def delegated(
    supported: Sequence[bool], at_most: int = MAX_DELEGATED_PARTITIONS, min_nodes: int = MIN_NODES_PER_PARTITION
) -> list[range]:
    """The partitions that are delegated; of two with as many nodes the earlier one counts as larger."""
    largest = sorted(partitions(supported), key=len, reverse=True)[:at_most]
    return [run for run in largest if len(run) >= min_nodes]


def delegate_schedule(tables: Tables, unit: str) -> Schedule:
    """What one delegate makes of a model.

    Refused positions are placed on the delegate's processor too, where a device lets them fall back to the CPU and says
    so; those that it would take but for the partitions' size are placed on the CPU.
    """
    units = [p.unit for p in tables.engine.processors]
    cpu, accelerator = units.index("cpu"), units.index(unit)
    supported = tables.possible[:, accelerator].tolist()  # as options, single processors have their own numbers
    taken = {position for run in delegated(supported) for position in run}
    there = taken | {k for k, takes in enumerate(supported) if not takes} if taken else set()
    return Schedule(
        tuple(Placed(k, k, accelerator if k in there else cpu, Memory.BUFFER) for k in range(len(supported)))
    )
