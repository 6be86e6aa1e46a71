"""Gymnasium spaces of a plan space."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from hetrl.envs.features import dynamic_size, static_features
from hetrl.envs.space import PlanSpace


def action_space(space: PlanSpace) -> spaces.Discrete:
    """One decision: the widest one's number of choices."""
    return spaces.Discrete(space.width)


def observation_space(space: PlanSpace) -> spaces.Box:
    """See `features`; all numbers lie well inside [-8, 8]."""
    return spaces.Box(-8.0, 8.0, (static_features(space).shape[1] + dynamic_size(space),), np.float32)
