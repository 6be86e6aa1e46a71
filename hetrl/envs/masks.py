"""Masks looked up instead of worked out: what is legal depends on few things, and many groups are alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hetrl.device_bridge.surrogate.tables import MAX_CHAIN
from hetrl.envs.space import GRANULARITIES, MIN_SUBGRAPH, PlanSpace

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_LENGTHS = np.array([1, MIN_SUBGRAPH, MAX_CHAIN])  # from which on other choices are legal


class MaskTables:
    """`PlanSpace.mask` of every state that a plan may be in, made when a group is first asked for."""

    def __init__(self, space: PlanSpace) -> None:
        self._space = space
        self._shape = (len(GRANULARITIES), len(space.compressions), len(space.options), len(_LENGTHS))
        self._tables: dict[tuple[bytes, bool, bool], Bools] = {}

    def plan_rows(self, granularity: Ints, compression: Ints) -> Ints:
        """(B,) what of a row's number stays the same through a plan."""
        _, ratios, options, lengths = self._shape
        return (granularity * ratios + compression) * (options * lengths)

    def look_up(self, k: int, plan_rows: Ints, placed: Ints, length: Ints) -> Bools:
        """(B, width) legal codes of group `k`; see `PlanSpace.group_mask`."""
        rows = plan_rows + placed * len(_LENGTHS)
        rows += length >= MIN_SUBGRAPH
        rows += length >= MAX_CHAIN
        return self._table(k).take(rows, axis=0)

    def _table(self, k: int) -> Bools:
        """(rows, width), shared by groups that may be placed alike."""
        space = self._space
        name = (space.possible_key(k), k == 0, k == space.groups - 1)
        if name not in self._tables:
            granularity, compression, placed, length = np.indices(self._shape).reshape(len(self._shape), -1)
            legal = space.group_mask(k, granularity, compression, placed, _LENGTHS[length])
            self._tables[name] = np.ascontiguousarray(legal.T)
        return self._tables[name]
