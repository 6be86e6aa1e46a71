"""Which compressions a run may choose from: one pruning ratio for all, ratios by stage that promise more, low rank.

Stages differ in what a channel costs and in what it is worth. Of all ratios by stage whose accuracy is expected to keep
the budget, those are offered that save most time on some processor, by the surrogate's times of the smaller operators.
What is saved is added up over stages; what it costs in accuracy is asked of `AccuracyDrops`, which may measure it, and
expect something else of the others from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from hetrl.accuracy import INT8, INT8_DROP_PCT, AccuracyDrops
from hetrl.compress.channels import kept_channels
from hetrl.compress.planned import compressed_graph, group_ratios
from hetrl.compress.stages import Stage, stages
from hetrl.compression import NO_COMPRESSION, Compression
from hetrl.device_bridge.surrogate.device import SurrogateDevice
from hetrl.errors import ModelError

Floats = npt.NDArray[np.float64]
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)  # of all stages alike
STAGE_RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
LOW_RANKS = (0.75, 0.5)  # shares of its weights that each factored kernel keeps
EACH = 2  # that are offered for each way to count what is saved
MOST_TRIED = 12  # by stage, that accuracy is asked of: on the user's data each takes a while


def compressions(device: SurrogateDevice, drops: AccuracyDrops, budget_pct: float) -> tuple[Compression, ...]:
    """Nothing first, then what keeps the budget, by what it saves."""
    found = _Offers(device, drops, budget_pct)
    for ratio in RATIOS:
        found.try_one(Compression.of((ratio,), device.spec.channel_multiple))
    if budget_pct > 0:
        found.try_stages()
    found.try_low_rank()
    return found.offered


class _Offers:
    def __init__(self, device: SurrogateDevice, drops: AccuracyDrops, budget_pct: float) -> None:
        self._device = device
        self._graph = device.graph
        self._drops = drops
        self._budget_pct = budget_pct
        self._multiple = device.spec.channel_multiple
        self._tried: set[tuple[object, ...]] = set()  # channels that each group keeps, and low rank
        self._offered: list[Compression] = []
        self.try_one(NO_COMPRESSION)

    @property
    def offered(self) -> tuple[Compression, ...]:
        first, *others = self._offered
        return first, *sorted(others, key=lambda c: (c.low_rank is not UNSET, len(c.ratios), c.ratios))

    def try_one(self, one: Compression) -> bool | None:
        """Offer it if it keeps the budget and can be made; None if one of the same shapes was tried before."""
        kept = kept_channels(self._graph, group_ratios(self._graph, one), one.multiple)
        low_rank = compressed_graph(self._graph, one) if one.low_rank is not UNSET else self._graph
        shapes = (*kept, *((node.id, node.geometry.in_channels) for node in low_rank.nodes if node.front))
        if shapes in self._tried:
            return None
        self._tried.add(shapes)
        try:
            kept_budget = self._drops.drop_pct(one) <= self._budget_pct
        except ModelError:  # what is planned without weights cannot be made of these
            return False
        if kept_budget:
            self._offered.append(one)
        return kept_budget

    def try_low_rank(self) -> None:
        """Alone, and beside the prunings that leave least work of those with which it should keep the budget."""
        prunings = [one for one in self.offered if one.prunes]
        prunings.sort(key=lambda one: compressed_graph(self._graph, one).macs)
        for keep in LOW_RANKS:
            alone = Compression(low_rank=keep)
            if not self.try_one(alone):
                continue
            left_pct = self._budget_pct - self._drops.drop_pct(alone)
            beside = [one for one in prunings if self._drops.drop_pct(one) <= left_pct]
            for pruning in (*beside[:1], *[one for one in beside[1:] if len(one.ratios) == 1][:1]):
                self.try_one(msgspec.structs.replace(pruning, low_rank=keep))

    def try_stages(self) -> None:
        levels = [self._levels(stage) for stage in stages(self._graph)]
        if len(levels) < 2:
            return
        ratios = np.array(list(product(*levels)))
        fresh, tries = np.ones(len(ratios), dtype=np.bool_), 0
        budgets = [self._budget_pct]
        if any(p.precision == INT8 for p in self._device.engine.processors) and self._budget_pct > INT8_DROP_PCT:
            budgets.append(self._budget_pct - INT8_DROP_PCT)
        saved_ms = list(self._saved_ms(levels))
        for budget_pct, saved in product(budgets, saved_ms):
            found = 0
            while found < EACH and tries < MOST_TRIED:
                allowed = fresh & (self._drops.expected_pct(ratios, self._multiple) <= budget_pct)
                best = int(np.where(allowed, saved, 0.0).argmax())
                if not allowed[best] or saved[best] <= 0:
                    break
                fresh[best] = False
                kept = self.try_one(Compression.of(ratios[best].tolist(), self._multiple))
                tries += kept is not None
                found += bool(kept)

    def _levels(self, stage: Stage) -> tuple[float, ...]:
        """Ratios of which each leaves other numbers of channels."""
        found: dict[tuple[int, ...], float] = {}
        for ratio in STAGE_RATIOS:
            kept = kept_channels(self._graph, ratio, self._multiple)
            found.setdefault(tuple(kept[group] for group in stage.groups), ratio)
        return tuple(found.values())

    def _saved_ms(self, levels: Sequence[tuple[float, ...]]) -> Iterator[Floats]:
        """What each row of ratios saves where each operator is fastest, and on each processor that runs the model."""
        whole = self._work_ms((0.0,))
        runs = np.isfinite(whole).all(axis=0)
        saved = [np.zeros((len(ratios), 1 + runs.sum())) for ratios in levels]
        for stage, mine in enumerate(levels):
            for level, ratio in enumerate(mine[1:], 1):
                smaller = self._work_ms(tuple(ratio if other == stage else 0.0 for other in range(len(levels))))
                saved[stage][level, 0] = (whole.min(axis=1) - smaller.min(axis=1)).sum()
                saved[stage][level, 1:] = (whole[:, runs] - smaller[:, runs]).sum(axis=0)
        for way in range(1 + runs.sum()):
            yield sum(np.ix_(*(each[:, way] for each in saved)), np.zeros(())).ravel()  # in the order of `product`

    def _work_ms(self, ratios: tuple[float, ...]) -> Floats:
        """(groups, processors) time of each group on each processor; inf where it does not run."""
        singles = tuple(option for option in self._device.options if not option.split)
        one = Compression.of(ratios, self._multiple)
        times = self._device.cost_model(one, singles).tables.time_ms  # (memories, groups, options, offsets, processors)
        each = [times[:, :, o, 0, option.processors[0]].min(axis=0) for o, option in enumerate(singles)]
        return np.stack(each, axis=1)
