"""Plans grown group by group, as a beam search grows them, on whatever tells the costs of complete plans.

A partial plan is judged with its remaining groups placed as in the best plan so far, or on one processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hetrl.agents.samplers.drafts import Draft, Drawer, Floats, Ints
from hetrl.envs.space import CONTINUE, PlanSpace


def grown(drawer: Drawer, heads: Ints, tails: Sequence[Draft], width: int, costs_of: Callable[[Ints], Floats]) -> Ints:
    """(length, up to `width`) complete plans with the given global decisions, the cheapest first.

    :param tails: plans of which partial ones borrow their end.
    :param costs_of: (length, B) complete decisions to costs (B,).
    """
    space, first = drawer.space, len(drawer.space.globals)
    ends = [drawer.settle(Draft(heads, tail.wanted, tail.begins)) for tail in tails]
    taken = ends[0][:, None]
    for step in range(first, space.length):
        choices, columns = np.nonzero(space.mask(step, taken))
        more = taken[:, columns]
        more[step] = choices
        costs = np.min([costs_of(completed(space, more, step, end)) for end in ends], axis=0)
        taken = more[:, np.argsort(costs, kind="stable")[:width]]
    return taken


def completed(space: PlanSpace, taken: Ints, step: int, end: Ints) -> Ints:
    """(length, B) decisions of which those up to `step` are kept, and the others are as in the plan `end` (length,)."""
    plans = taken.copy()
    plans[step + 1 :] = end[step + 1 :, None]
    if step + 1 < space.length:
        here = len(space.globals)
        option = space.schedules(end[:, None])[0].option[step + 1 - here, 0]
        placed = space.schedules(plans)[0].option[step - here]
        plans[step + 1] = np.where((placed == option) & space.single[option], CONTINUE, 1 + option)
    return plans
