"""Which of a graph's operators a delegate gets: TensorFlow Lite's partitions, of which it keeps only the largest.

`PartitionGraphIntoIndependentNodeSubsets` (tensorflow/tensorflow, lite/graph_info.cc) sweeps over the operators in
execution order, again and again; each sweep takes every operator that is ready and of the sweep's kind (delegated or
not). A delegate keeps the `max_partitions` subsets with the most operators, none below `min_nodes` (lite/delegates/
utils.cc); the GPU delegate's default is one (lite/delegates/gpu/common/model_builder.cc, `GetOpsToReplace`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetrl.support.lowering import RuntimeOp


@dataclass(frozen=True)
class Limits:
    """What a delegate keeps of its partitions; `max_partitions` None: all."""

    max_partitions: int | None = None
    min_nodes: int = 0


def partitions(ops: Sequence[RuntimeOp], taken: Sequence[bool]) -> list[tuple[int, ...]]:
    """The delegated subsets, as operator indices, in the order in which they run.

    :param taken: per operator, whether the delegate takes it.
    """
    left = list(range(len(ops)))
    done: set[int] = set()
    subsets: list[tuple[int, ...]] = []
    while left:
        kind = taken[left[0]]  # the first of the rest is always ready: the order is topological
        subset: list[int] = []
        for index in left:
            if taken[index] == kind and all(read in done for read in ops[index].reads):
                subset.append(index)
                done.add(index)
        if kind:
            subsets.append(tuple(subset))
        left = [index for index in left if index not in done]
    return subsets


def kept(ops: Sequence[RuntimeOp], taken: Sequence[bool], limits: Limits) -> frozenset[int]:
    """Operators that end up on the delegate; of equally large subsets the earlier ones."""
    ranked = sorted(partitions(ops, taken), key=len, reverse=True)[: limits.max_partitions]
    return frozenset(index for subset in ranked if len(subset) >= limits.min_nodes for index in subset)
