"""How often to run a plan: until it is warm, then until its median is known well enough.

Nothing here knows what runs, or on what: the run, the clock and the measure of foreign load are given.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Generic, TypeVar

from hetrl.device_bridge.runner.significance import median_interval

T = TypeVar("T")
Clock = Callable[[], float]
"""Monotonic milliseconds."""


@dataclass(frozen=True)
class Sampling:
    """How to sample. Times are per plan: a comparison of three may take three times as long.

    :param agreement: warm when two runs in a row differ by no more than this share.
    :param relative_width: enough when the median's interval is no wider than this share of the median.
    :param min_s: go on for at least this long, so that enough frames are counted.
    :param settle_runs: runs before each timed one of a comparison that are not timed: the other plan's data leaves
        the caches, and its threads fall asleep.
    :param window_s: foreign load is judged over windows of at least this length; shorter ones the kernel's clock ticks
        cannot resolve.
    :param foreign_share: a window is redone when other programs took more than this share of the cores.
    :param max_redone: after so many windows the rest is kept, and flagged.
    """

    max_warmup_runs: int = 20
    max_warmup_s: float = 5.0
    agreement: float = 0.05
    confidence: float = 0.9
    relative_width: float = 0.05
    min_repeats: int = 7
    max_repeats: int = 200
    min_s: float = 0.0
    max_s: float = 5.0
    settle_runs: int = 1
    window_s: float = 0.2
    foreign_share: float = 0.1
    max_redone: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_repeats <= self.max_repeats:
            raise ValueError(f"from {self.min_repeats} to {self.max_repeats} repeats")
        if not 0 <= self.min_s <= self.max_s:
            raise ValueError(f"from {self.min_s} to {self.max_s} s")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"a confidence of {self.confidence}")


@dataclass(frozen=True)
class Foreign:
    """What other programs took.

    :param total_ms: CPU time that they have taken so far, summed over `cores` cores.
    """

    total_ms: Callable[[], float]
    cores: int


NO_FOREIGN = Foreign(lambda: 0.0, 1)
DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True)
class Sampled(Generic[T]):
    """What came of one plan.

    :param results: what each run gave, along with `samples_ms`.
    :param redone: samples that were thrown away because of foreign load.
    :param foreign_share: share of the cores that other programs took while the kept samples ran.
    :param foreign_load: kept samples had more of it than asked for.
    """

    samples_ms: tuple[float, ...]
    interval_ms: tuple[float, float] | None
    results: tuple[T, ...]
    redone: int
    foreign_share: float
    foreign_load: bool

    @property
    def median_ms(self) -> float:
        return median(self.samples_ms)

    @property
    def typical(self) -> T:
        """The result of the run at the median; of two the faster one, so that it fits into the median."""
        places = sorted(range(len(self.samples_ms)), key=self.samples_ms.__getitem__)
        return self.results[places[(len(places) - 1) // 2]]


def warm_up(run: Callable[[], object], sampling: Sampling, clock: Clock) -> int:
    """Run until two runs in a row agree, or a limit is reached.

    :return: how many runs that took.
    """
    began = clock()
    before = 0.0
    for count in range(1, sampling.max_warmup_runs + 1):
        start = clock()
        run()
        took = clock() - start
        if count > 1 and abs(took - before) <= sampling.agreement * max(took, before):
            return count
        if clock() - began >= sampling.max_warmup_s * 1000:
            return count
        before = took
    return sampling.max_warmup_runs


@dataclass
class _Kept(Generic[T]):
    """Rounds: `samples_ms[round][plan]`."""

    samples_ms: list[list[float]] = field(default_factory=list)
    results: list[list[T]] = field(default_factory=list)
    wall_ms: float = 0.0
    foreign_ms: float = 0.0
    flagged: bool = False
    redone: int = 0

    def add(self, window: _Kept[T]) -> None:
        self.samples_ms += window.samples_ms
        self.results += window.results
        self.wall_ms += window.wall_ms
        self.foreign_ms += window.foreign_ms

    def share(self, cores: int) -> float:
        return min(1.0, max(0.0, self.foreign_ms) / (self.wall_ms * cores)) if self.wall_ms > 0 else 0.0


def sample(
    runs: Sequence[Callable[[], T]],
    sampling: Sampling,
    clock: Clock,
    foreign: Foreign = NO_FOREIGN,
    ended: Callable[[bool], None] | None = None,
) -> list[Sampled[T]]:
    """Time each of `runs` as often as it takes; several are interleaved, in an order drawn anew for every round.

    Ends when every interval is narrow, or time or repeats are used up; there is at least one round. Sample i of every
    plan is of the same round.

    :param ended: told after each window whether its samples are kept.
    """
    dice = random.Random(sampling.seed)
    kept: _Kept[T] = _Kept()
    began = clock()
    redone_windows = 0
    while True:
        window = _window(runs, sampling, clock, dice, sampling.max_repeats - len(kept.samples_ms), foreign)
        elapsed_s = (clock() - began) / 1000 / len(runs)
        noisy = window.share(foreign.cores) > sampling.foreign_share
        over = elapsed_s >= sampling.max_s
        redo = noisy and redone_windows < sampling.max_redone and not (over and not kept.samples_ms)
        if ended is not None:
            ended(not redo)
        if redo:
            redone_windows += 1
            kept.redone += len(window.samples_ms)
        else:
            kept.add(window)
            kept.flagged |= noisy
        if over or len(kept.samples_ms) >= sampling.max_repeats:
            break
        if elapsed_s >= sampling.min_s and _narrow(kept.samples_ms, sampling):
            break
    return [_sampled(kept, plan, sampling, foreign.cores) for plan in range(len(runs))]


def _window(
    runs: Sequence[Callable[[], T]],
    sampling: Sampling,
    clock: Clock,
    dice: random.Random,
    rounds_left: int,
    foreign: Foreign,
) -> _Kept[T]:
    """Rounds for as long as it takes to judge foreign load."""
    window: _Kept[T] = _Kept()
    began, foreign_began = clock(), foreign.total_ms()
    settle_runs = sampling.settle_runs if len(runs) > 1 else 0
    longest_ms = min(sampling.window_s, sampling.max_s) * 1000
    while not window.samples_ms or (len(window.samples_ms) < rounds_left and clock() - began < longest_ms):
        order = list(range(len(runs)))
        dice.shuffle(order)
        times = [0.0] * len(runs)
        results: dict[int, T] = {}
        for plan in order:
            for _ in range(settle_runs):
                runs[plan]()
            start = clock()
            results[plan] = runs[plan]()
            times[plan] = clock() - start
        window.samples_ms.append(times)
        window.results.append([results[plan] for plan in range(len(runs))])
    window.wall_ms = clock() - began
    window.foreign_ms = foreign.total_ms() - foreign_began
    return window


def _narrow(rounds: Sequence[Sequence[float]], sampling: Sampling) -> bool:
    if len(rounds) < sampling.min_repeats:
        return False
    for samples in zip(*rounds, strict=True):
        interval = median_interval(samples, sampling.confidence)
        if interval is None or interval[1] - interval[0] > sampling.relative_width * median(samples):
            return False
    return True


def _sampled(kept: _Kept[T], plan: int, sampling: Sampling, cores: int) -> Sampled[T]:
    samples = tuple(times[plan] for times in kept.samples_ms)
    return Sampled(
        samples,
        median_interval(samples, sampling.confidence),
        tuple(results[plan] for results in kept.results),
        kept.redone,
        kept.share(cores),
        kept.flagged,
    )
