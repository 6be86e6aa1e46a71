"""Rounds of a search that a surrogate guides: plans annealed on what it says, the most promising ones measured."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hetrl.agents.hybrid.annealing import Visited, anneal
from hetrl.agents.hybrid.growing import grown
from hetrl.agents.hybrid.moves import Layout, Moves
from hetrl.agents.hybrid.ranking import Beliefs, Ranking
from hetrl.agents.ledger import Ledger, column_key
from hetrl.agents.samplers.annealing import whole_model
from hetrl.agents.samplers.drafts import Drawer

Ints = npt.NDArray[np.int64]
MEMORY = 1  # the index of the memory type among the global decisions
ELITE = 16  # measured plans that later rounds start from
BELIEFS = 8  # at least, that plans are annealed for and judged by
CANDIDATES = 4  # plans of each belief


class GuidedSearch:
    """Proposes plans to one ledger.

    :param chains: plans that are annealed side by side.
    """

    def __init__(self, ledger: Ledger, name: str, chains: int, rng: np.random.Generator) -> None:
        self.ranking = Ranking(ledger)
        self._ledger, self._name, self._rng = ledger, name, rng
        self._chains = chains
        self._moves = Moves(ledger.space, slowing=ledger.objective.max_frame_drop_rate is not None)

    def widen(self) -> None:
        """From now on also vary what only costs time, if the surrogate is right."""
        self._moves = Moves(self._ledger.space, slowing=True)

    def round(self, proposals: Ints, width: int, picks: int, steps: int, hot: float, cold: float) -> int:
        """Anneal from the best plans and (length, B) proposals, and measure `picks`; how many new plans that were.

        :param width: of a beam search by the best guess, whose plans are candidates too; 0 for none.
        """
        self.ranking.learn()
        count = picks if self.ranking.trusted else max(BELIEFS, picks)
        beliefs = self.ranking.beliefs(count, self._rng)
        which = np.arange(self._chains) % count

        def costs(plans: Ints) -> npt.NDArray[np.float64]:
            return self.ranking.costs(plans, beliefs, which)

        beam = self._beam(width) if width else proposals[:, :0]
        start = self._start(np.hstack([proposals, beam]))
        visited = anneal(self._moves, start, costs, steps=steps, hot=hot, cold=cold, rng=self._rng)
        best_guess = np.zeros(beam.shape[1], dtype=np.int64)  # the first chain's belief
        visited = Visited(
            np.hstack([visited.plans, beam]),
            np.append(visited.costs, self.ranking.costs(beam)),
            np.append(visited.chain, best_guess),
        )
        chosen = self._best(visited, which, count, 1 if beliefs is None else CANDIDATES)
        if beliefs is not None:
            chosen = chosen[:, self._promising(chosen, beliefs, picks)]
        before = self._ledger.evaluations
        if chosen.shape[1]:
            self._ledger.outcomes(chosen, self._name)
        return self._ledger.evaluations - before

    def _beam(self, width: int) -> Ints:
        """(length, B) plans grown with the global decisions of the best plan so far, or with another memory type."""
        ledger, drawer = self._ledger, Drawer(self._ledger.space, self._ledger.objective)
        tails = whole_model(drawer)
        if ledger.best is not None and ledger.best.trial.decisions is not None:
            tails.insert(0, drawer.draft(np.array(ledger.best.trial.decisions, dtype=np.int64)))
        heads = [tails[0].heads.copy() for _ in ledger.space.memories]
        for memory, head in enumerate(heads):
            head[MEMORY] = memory
        return np.hstack([grown(drawer, head, tails, width, self.ranking.costs) for head in heads])

    def _start(self, proposals: Ints) -> Layout:
        """Proposals and the elite share the chains; what they leave is filled at random."""
        layouts = self._moves.random(self._chains, self._rng)
        elite = self._elite()
        places = self._rng.permutation(self._chains)
        for plans in (elite, proposals):
            if plans.shape[1]:
                some, places = places[: self._chains // 2], places[self._chains // 2 :]
                drawn = self._rng.integers(plans.shape[1], size=len(some))
                layouts.put(some, self._moves.of(plans[:, drawn]))
        return layouts

    def _elite(self) -> Ints:
        """(length, E) the best measured plans of the space."""
        ledger = self._ledger
        trials = [t for t in ledger.trials if t.decisions is not None and t.latency_ms is not None]
        trials.sort(key=ledger.cost_ms)
        return np.array([t.decisions for t in trials[:ELITE]], dtype=np.int64).reshape(-1, ledger.space.length).T

    def _promising(self, plans: Ints, beliefs: Beliefs, picks: int) -> Ints:
        """Which of (length, N) plans to measure: together they promise most, over all beliefs.

        Each in turn is the one with the largest expected improvement on the best plan so far and on those before it
        (Ginsbourger et al., Kriging is well-suited to parallelize optimization, 2010), all as the beliefs have it.
        """
        size, count = plans.shape[1], len(beliefs.off_by)

        def costs(of: Ints) -> npt.NDArray[np.float64]:
            """(D, N) under every belief."""
            n = of.shape[1]
            if n == 0:
                return np.zeros((count, 0))
            flat = self.ranking.costs(np.tile(of, count), beliefs, np.repeat(np.arange(count), n))
            return flat.reshape(count, n)

        known = self._elite()[:, :1]
        expected, best = costs(plans), costs(known).min(axis=1, initial=np.inf)
        chosen: list[int] = []
        while len(chosen) < min(picks, size):
            gains = np.maximum(0.0, best[:, None] - expected).mean(axis=0) if np.isfinite(best).all() else -expected[0]
            gains[chosen] = -np.inf
            if gains.max() <= 0:  # nothing promises anything: the likeliest ones
                gains = np.where(np.isneginf(gains), -np.inf, -expected[0])
            chosen.append(int(gains.argmax()))
            best = np.minimum(best, expected[:, chosen[-1]])
        return np.array(chosen, dtype=np.int64)

    def _best(self, visited: Visited, which: Ints, count: int, each: int) -> Ints:
        """For each of `count` beliefs in turn its `each` best plans that are neither measured nor chosen yet."""
        space = self._ledger.space
        chosen: dict[str, Ints] = {}
        for belief in range(count):
            mine = np.flatnonzero(which[visited.chain] == belief)
            order = mine[np.argsort(visited.costs[mine], kind="stable")]
            wanted = len(chosen) + each
            for begin in range(0, len(order), 64):
                same = space.canonical(visited.plans[:, order[begin : begin + 64]])
                for b in np.flatnonzero(~self._ledger.measured(same)):
                    if len(chosen) < wanted:
                        chosen.setdefault(column_key(same[:, b]), same[:, b])
                if len(chosen) >= wanted:
                    break
        if not chosen:
            return np.zeros((space.length, 0), dtype=np.int64)
        return np.array(list(chosen.values())).T
