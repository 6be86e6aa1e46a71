"""What an agent sees of the model: per decision, numbers that do not depend on the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hetrl.envs.space import PlanSpace
from hetrl.graph import OperatorGraph, OpKind

Floats = npt.NDArray[np.float32]
WAVES = 8  # sine and cosine pairs of the position
LIMIT = 8.0  # no number is larger
LOOKAHEAD = 1  # following fusion groups that are shown too
_KINDS = tuple(OpKind)


def static_features(space: PlanSpace) -> Floats:
    """(length, F) float32, one row per decision: which decision it is, where, and the fusion groups at hand."""
    first, length = len(space.globals), space.length
    groups = _group_features(space.graph)
    rows = np.zeros((length, first + 1 + 2 * WAVES + (1 + LOOKAHEAD) * groups.shape[1]), dtype=np.float32)
    for step in range(length):
        rows[step, min(step, first)] = 1.0
        if step < first:
            continue
        k = step - first
        angle = np.pi * (k + 0.5) / space.groups * np.arange(1, WAVES + 1)
        rows[step, first + 1 : first + 1 + 2 * WAVES] = np.concatenate([np.sin(angle), np.cos(angle)])
        window = groups[k : k + 1 + LOOKAHEAD].ravel()
        rows[step, first + 1 + 2 * WAVES : first + 1 + 2 * WAVES + len(window)] = window
    return rows


def dynamic_size(space: PlanSpace) -> int:
    """Numbers that depend on earlier decisions: one-hot of every global choice, of the current placement; length."""
    return sum(len(d.choices) for d in space.globals) + len(space.options) + 1


def _group_features(graph: OperatorGraph) -> Floats:
    """(groups, F): logarithms of work, weights and activations, geometry, kind of operator, ways to split."""
    rows = []
    for group in graph.groups:
        g = graph.group_geometry(group.index)
        sizes = (
            graph.group_macs(group.index) / 1e6,
            graph.group_weight_bytes(group.index) / 1e6,
            graph.nodes[group.anchor].input_bytes / 1e6,
            graph.nodes[group.nodes[-1]].output_bytes / 1e6,
        )
        rows.append(
            [
                *(np.log1p(s) / 8 for s in sizes),
                np.log2(g.out_h) / 10,
                np.log2(g.out_channels) / 12,
                min(g.kernel_h / 8, LIMIT),  # of a global pool: all rows
                min(g.stride_h / 4, LIMIT),
                float(group.splits_height),
                float(group.splits_channels),
                *(float(g.kind is kind) for kind in _KINDS),
            ]
        )
    return np.array(rows, dtype=np.float32)
