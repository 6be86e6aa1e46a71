"""Gymnasium spaces of a plan space."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from hetrl.envs.features import LIMIT, dynamic_size, static_features
from hetrl.envs.space import PlanSpace


def action_space(space: PlanSpace) -> spaces.Discrete:
    """One decision: the widest one's number of choices."""
    return spaces.Discrete(space.width)


def observation_space(space: PlanSpace) -> spaces.Box[np.float32]:
    """See `features`."""
    features = static_features(space).shape[1] + dynamic_size(space)
    box: spaces.Box[np.float32] = spaces.Box(-LIMIT, LIMIT, (features,), np.float32)
    return box
