"""Simulated annealing of many plans at once (Kirkpatrick et al., Science 1983), on whatever tells their costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetrl.agents.hybrid.moves import Layout, Moves

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Visited:
    """All plans that the chains proposed: decisions (length, V), costs (V,), and the chain of each (V,)."""

    plans: Ints
    costs: Floats
    chain: Ints


def anneal(
    moves: Moves,
    chains: Layout,
    costs_of: Callable[[Ints], Floats],
    *,
    steps: int,
    hot: float,
    cold: float,
    rng: np.random.Generator,
) -> Visited:
    """Change `chains` (B plans) in place, step by step; what they went through.

    :param costs_of: (length, B) decisions to costs (B,).
    :param hot: first temperature, as a fraction of a plan's cost, falling geometrically to `cold`.
    """
    size = chains.head.shape[1]
    plans = moves.decisions(chains)
    cost = costs_of(plans)
    all_plans, all_costs = [plans], [cost.copy()]
    for step in range(steps):
        temperature = hot * (cold / hot) ** (step / steps)
        changed = moves.varied(chains, rng)
        plans = moves.decisions(changed)
        new = costs_of(plans)
        accepted = np.flatnonzero(np.log(rng.random(size)) < np.log(cost / new) / temperature)
        chains.put(accepted, changed.take(accepted))
        cost[accepted] = new[accepted]
        all_plans.append(plans)
        all_costs.append(new)
    return Visited(np.hstack(all_plans), np.concatenate(all_costs), np.tile(np.arange(size), len(all_costs)))
