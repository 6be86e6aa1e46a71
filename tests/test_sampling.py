"""Sampling with a clock and a load that tests make up, and the statistics behind it."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrl.device_bridge.runner.sampling import Foreign, Sampling, sample, warm_up
from hetrl.device_bridge.runner.significance import median_interval, signed_rank_p, significantly_faster, speedup


class World:
    """Time that passes only while something runs."""

    def __init__(self, cores: int = 2) -> None:
        self.now_ms = 0.0
        self.foreign_ms = 0.0
        self.share = 0.0  # of the cores, that others take
        self.cores = cores
        self.order: list[int] = []

    def clock(self) -> float:
        return self.now_ms

    def runner(self, times_ms, name: int = 0):
        times = itertools.cycle(times_ms)

        def run() -> int:
            took = next(times)
            self.now_ms += took
            self.foreign_ms += took * self.share * self.cores
            self.order.append(name)
            return len(self.order)

        return run

    @property
    def foreign(self) -> Foreign:
        return Foreign(lambda: self.foreign_ms, self.cores)


times = st.lists(st.floats(0.5, 500), min_size=1, max_size=20)


@given(times, st.integers(1, 30), st.floats(0, 3), st.integers(1, 3), st.floats(0, 1), st.integers(0, 3))
def test_sampling_keeps_its_limits(times_ms, max_repeats, max_s, plans, share, max_redone):
    world = World()
    world.share = share
    limits = Sampling(min_repeats=1, max_repeats=max_repeats, max_s=max_s, max_redone=max_redone, settle_runs=1)
    found = sample([world.runner(times_ms, i) for i in range(plans)], limits, world.clock, world.foreign)
    runs_a_round = plans * (2 if plans > 1 else 1)
    assert all(1 <= len(seen.samples_ms) <= max_repeats for seen in found)
    assert len({len(seen.samples_ms) for seen in found}) == 1
    longest_window_ms = min(limits.window_s, max_s) * 1000
    longest_ms = max_s * 1000 * plans + longest_window_ms + max(times_ms) * runs_a_round
    assert world.now_ms <= longest_ms * (1 + 1e-9)
    for seen in found:
        assert all(min(abs(ms - t) for t in times_ms) < 1e-6 for ms in seen.samples_ms)
        if seen.interval_ms is not None:
            assert seen.interval_ms[0] <= seen.median_ms <= seen.interval_ms[1]


def test_sampling_ends_when_the_median_is_known():
    world = World()
    (steady,) = sample([world.runner([10.0])], Sampling(window_s=0.0), world.clock)
    assert len(steady.samples_ms) == Sampling().min_repeats
    world = World()
    (noisy,) = sample([world.runner([10.0, 20.0, 13.0, 17.0])], Sampling(window_s=0.0, max_s=2.0), world.clock)
    assert len(noisy.samples_ms) > 5 * len(steady.samples_ms)


def test_sampling_goes_on_until_enough_frames_are_counted():
    world = World()
    sample([world.runner([10.0])], Sampling(min_s=2.0), world.clock)
    assert 2000 <= world.now_ms < 2500


def test_the_typical_run_is_the_one_at_the_median():
    world = World()
    (seen,) = sample([world.runner([30.0, 10.0, 20.0])], Sampling(min_repeats=3, max_repeats=3), world.clock)
    assert seen.samples_ms == (30.0, 10.0, 20.0) and seen.typical == 3


@given(st.integers(0, 1000), st.integers(2, 4))
def test_every_round_runs_each_plan_once_in_an_order_of_its_own(seed, plans):
    world = World()
    limits = Sampling(seed=seed, settle_runs=0, min_repeats=40, max_repeats=40, max_s=1e6, relative_width=0)
    found = sample([world.runner([5.0 + i], i) for i in range(plans)], limits, world.clock)
    rounds = [world.order[i : i + plans] for i in range(0, len(world.order), plans)]
    assert len(rounds) == 40 and all(sorted(order) == list(range(plans)) for order in rounds)
    assert all(5 + i == seen.median_ms for i, seen in enumerate(found))
    first = [order[0] for order in rounds]
    assert all(0 < first.count(plan) < 40 for plan in range(plans))  # nobody always goes first
    again = World()
    sample([again.runner([5.0 + i], i) for i in range(plans)], limits, again.clock)
    assert again.order == world.order


def test_samples_under_foreign_load_are_redone():
    world = World()
    inner = world.runner([10.0])
    count = itertools.count()

    def run() -> int:
        world.share = 0.5 if 20 <= next(count) < 60 else 0.0  # the second and third window
        return inner()

    limits = Sampling(min_repeats=100, max_repeats=100, max_s=100.0)
    (seen,) = sample([run], limits, world.clock, world.foreign)
    assert seen.redone == 40 and not seen.foreign_load and seen.foreign_share == 0
    assert len(seen.samples_ms) == 100


def test_foreign_load_that_does_not_end_is_flagged():
    world = World()
    world.share = 0.4
    (seen,) = sample([world.runner([10.0])], Sampling(max_redone=3), world.clock, world.foreign)
    assert seen.redone == 60 and seen.foreign_load
    assert seen.foreign_share == pytest.approx(0.4)


def test_foreign_load_and_no_time_left_still_gives_a_sample():
    world = World()
    world.share = 0.4
    (seen,) = sample([world.runner([3000.0])], Sampling(max_s=2.0), world.clock, world.foreign)
    assert seen.samples_ms == (3000.0,) and seen.foreign_load and seen.interval_ms is None


def test_warm_up_waits_for_two_runs_that_agree():
    world = World()
    assert warm_up(world.runner([100, 50, 30, 20, 19.5, 19]), Sampling(), world.clock) == 5
    assert warm_up(world.runner([100, 50]), Sampling(max_warmup_runs=7), world.clock) == 7
    assert warm_up(world.runner([1000, 500]), Sampling(max_warmup_s=2.0), world.clock) == 3


@pytest.mark.parametrize("wrong", [{"min_repeats": 0}, {"max_repeats": 3}, {"min_s": 9.0}, {"confidence": 1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        Sampling(**wrong)


@pytest.mark.parametrize("count", [5, 12, 31])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_covers_the_median_as_often_as_it_says(count, confidence):
    dice = random.Random(count)
    hits, found = 0, 0
    for _ in range(3000):
        interval = median_interval([dice.expovariate(1.0) for _ in range(count)], confidence)
        if interval is not None:
            found += 1
            hits += interval[0] <= math.log(2) <= interval[1]  # the exponential distribution's median
    assert found == (0 if (count, confidence) == (5, 0.95) else 3000)
    assert hits >= (confidence - 0.015) * found  # 0.015: three standard errors


def test_the_interval_is_the_textbook_one():
    assert median_interval(range(1, 5), 0.9) is None
    assert median_interval(range(1, 6), 0.9) == (1, 5)
    assert median_interval(range(1, 11), 0.9) == (2, 9)  # Conover: 97.9 %; between the 3rd and the 8th only 89.1 %
    assert median_interval(range(1, 21), 0.95) == (6, 15)


def test_signed_ranks_are_the_textbook_ones():
    ratios = [math.exp(x) for x in (-6, -5, -4, -3, 2, 1)]
    assert signed_rank_p(ratios, [1.0] * 6) == pytest.approx(5 / 64)  # rank sums 0, 1, 2, 3 (twice): five of 64
    assert signed_rank_p([1.0] * 5, [2.0] * 5) == pytest.approx(1 / 32)
    assert signed_rank_p([1.0, 2.0], [1.0, 2.0]) == 1.0


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=11))
def test_signed_ranks_count_every_pattern_of_signs(pairs):
    """Against the definition, by brute force over all signs; ties and zeros included."""
    a, b = zip(*pairs, strict=True)
    sizes = [math.log(x / y) for x, y in pairs if x != y]
    ordered = sorted(map(abs, sizes))
    ranks = [ordered.index(abs(s)) + ordered.count(abs(s)) / 2 + 0.5 for s in sizes]
    seen = sum(rank for rank, size in zip(ranks, sizes, strict=True) if size > 0)
    patterns = list(itertools.product((0, 1), repeat=len(ranks)))
    extreme = sum(sum(r for r, sign in zip(ranks, signs, strict=True) if sign) <= seen for signs in patterns)
    assert signed_rank_p(a, b) == pytest.approx(extreme / len(patterns))


def test_equal_plans_are_seldom_called_different():
    dice = random.Random(0)

    def latencies(middle: float, count: int):
        return [dice.lognormvariate(math.log(middle), 0.1) for _ in range(count)]

    for count in (10, 30, 80):  # exact, exact, normal
        wrong = sum(significantly_faster(latencies(10, count), latencies(10, count)) for _ in range(1000))
        assert wrong <= 75
        right = sum(significantly_faster(latencies(8.5, count), latencies(10, count)) for _ in range(200))
        assert right > 150
    assert not significantly_faster([1.0] * 4, [9.0] * 4)  # four rounds prove nothing


def test_drift_of_both_is_no_difference():
    slow_down = [1 + i / 5 for i in range(20)]
    assert significantly_faster([10 * s for s in slow_down], [10.3 * s for s in slow_down])
    assert speedup([10 * s for s in slow_down], [20 * s for s in slow_down]) == pytest.approx(2)
