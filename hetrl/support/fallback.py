"""How much of a stretched network falls back to the CPU: support rules and a delegate's partitions, counted.

Operators of branch k are meant for the k-th processor; what lies outside the branches (concatenations, the classifier)
is meant for the first accelerator. An operator falls back if its processor's delegate refuses it, or if it takes it but
leaves its partition to the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hetrl.graph.reader import graph_from_model
from hetrl.support.lowering import RuntimeOp, lower
from hetrl.support.partition import Limits, kept
from hetrl.support.rules import RuleSet, rule_set
from hetrl.support.stretch import BRANCH, Merge, Read, stretch
from hetrl.zoo.blueprint import Blueprint

CPU, GPU, DSP = "cpu", "gpu", "dsp"
_ADDED = ("STRIDED_SLICE", "SPLIT", "CONCATENATION", "QUANTIZE", "DEQUANTIZE")  # ResNet has none of its own
_BRANCH = re.compile(rf"{BRANCH}(\d+)")


@dataclass(frozen=True)
class Delegate:
    """What a processor takes, and which of its partitions it keeps."""

    rules: RuleSet
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Fallback:
    """Counts of one placement.

    :param operators: of the whole graph, as the runtime counts them.
    :param added: of them, those that only partitioning needs: slices, splits, concatenations, conversions.
    :param meant: of them, those meant for an accelerator.
    :param refused: of those, those that the accelerator's delegate does not take.
    :param left: of those, those that it takes, in partitions that it does not keep.
    """

    operators: int
    added: int
    meant: int
    refused: int
    left: int

    @property
    def unsupported(self) -> float:
        """Operators that do not run where they were meant to, of all: 0 to 1."""
        return (self.refused + self.left) / self.operators

    @property
    def unsupported_of_meant(self) -> float:
        """The same, of those meant for an accelerator."""
        return (self.refused + self.left) / self.meant if self.meant else 0.0

    @property
    def on_cpu(self) -> float:
        """Operators that run on the CPU, its own branch among them, of all."""
        return 1 - (self.meant - self.refused - self.left) / self.operators


def count(ops: Sequence[RuntimeOp], processors: Sequence[str], delegates: Mapping[str, Delegate]) -> Fallback:
    """Fallback of lowered operators whose k-th branch is meant for `processors[k]`."""
    home = next((p for p in processors if p != CPU), CPU)
    meant = [processors[k] if (k := branch_of(op)) is not None else home for op in ops]
    refused = stay = 0
    for processor, delegate in delegates.items():
        mine = [p == processor for p in meant]
        taken = [m and delegate.rules.refusal(op.name) is None for m, op in zip(mine, ops, strict=True)]
        refused += sum(mine) - sum(taken)
        stay += sum(taken) - len(kept(ops, taken, delegate.limits))
    added = sum(op.name in _ADDED for op in ops) if len(processors) > 1 else 0
    return Fallback(len(ops), added, sum(p != CPU for p in meant), refused, stay)


def branch_of(op: RuntimeOp) -> int | None:
    """Number of an operator's branch; None outside the branches, and for a split, which feeds them all."""
    found = _BRANCH.search(op.node)
    return int(found[1]) if found and op.name != "SPLIT" else None


def fallback(
    network: Blueprint,
    processors: Sequence[str],
    merge: Merge,
    delegates: Mapping[str, Delegate],
    read: Read = Read.SLICE,
) -> Fallback:
    """Fallback of a network stretched over `processors` in equal shares; one processor takes it as it is."""
    if len(processors) == 1:
        return count(lower(graph_from_model(network.model, name="whole")), processors, delegates)
    int8 = frozenset(k for k, processor in enumerate(processors) if processor == DSP)
    shares = [100 // len(processors)] * len(processors)
    return count(lower(stretch(network, shares, merge, read=read, int8=int8).graph()), processors, delegates)


def tflite(limits: Limits, gpu_rules: str = "tflite_gpu") -> Mapping[str, Delegate]:
    """TensorFlow Lite's GPU and Hexagon delegates with the same limits."""
    return {GPU: Delegate(rule_set(gpu_rules), limits), DSP: Delegate(rule_set("tflite_hexagon"), limits)}
