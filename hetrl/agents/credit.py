"""Which decision a plan's time is due to: rewards for every step, from the timeline that a measurement brings.

An environment can only pay when a plan is complete. An agent that has seen the plan's timeline knows more: each
segment's time belongs to the decisions that made it. Spread so, the sum over a plan stays what the objective says,
and a good segment is learnt from even when the rest of its plan is bad.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hetrl.envs.core import Finished
from hetrl.envs.space import PlanSpace

Floats = npt.NDArray[np.float64]


def work_weights(space: PlanSpace) -> Floats:
    """(groups,) share of a segment's time that each of its fusion groups is held to account for, before scaling."""
    graph = space.graph
    macs = np.array([graph.group_macs(g) for g in range(space.groups)], dtype=np.float64)
    weights = np.array([graph.group_weight_bytes(g) for g in range(space.groups)], dtype=np.float64)
    moved = np.array(
        [graph.nodes[graph.groups[g].nodes[-1]].output_bytes for g in range(space.groups)], dtype=np.float64
    )
    # Ten multiply-accumulates take about as long as moving a byte on the fitted phones; 1e5 stands for a launch.
    return macs + 10 * (weights + moved) + 1e5


def step_rewards(space: PlanSpace, weights: Floats, finished: Finished, reference_ms: float) -> Floats:
    """(length, B) rewards: minus the time of each fusion group, over `reference_ms`; penalties come at the end."""
    size = finished.taken.shape[1]
    segment_ms = np.nan_to_num(finished.outcomes.segment_ms.T)  # (groups, B), at each segment's last group
    batch, _ = space.schedules(finished.taken)
    total = np.vstack([np.zeros((1, size)), np.cumsum(np.broadcast_to(weights[:, None], batch.start.shape), axis=0)])
    columns = np.arange(size)
    of_segment = total[batch.end + 1, columns] - total[batch.start, columns]
    spent = segment_ms[batch.end, columns] * weights[:, None] / of_segment
    rewards = np.zeros(finished.taken.shape)
    rewards[len(space.globals) :] = -spent
    rewards[-1] -= finished.cost_ms - spent.sum(axis=0)
    return rewards / reference_ms
